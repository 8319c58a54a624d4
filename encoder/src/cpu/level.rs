//! Which vector instructions the fused loops run with, chosen when the program runs.
//!
//! The loops are plain Rust that the compiler vectorises once for each level. None of them uses a fused
//! multiply-add or a reduction order of its own, so every level gives the same bits.

/// A set of vector instructions that this machine has.
#[derive(Debug, Clone, Copy)]
pub struct Level(Kind);

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// What the target always has: SSE2 on `x86_64`, NEON on `aarch64`.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Level {
    /// The widest that this machine has.
    pub fn best() -> Self {
        Self::all().pop().expect("the baseline is always there")
    }

    /// All that this machine has, narrowest first.
    pub fn all() -> Vec<Self> {
        let mut out = vec![Self(Kind::Baseline)];
        #[cfg(target_arch = "x86_64")]
        {
            out.extend(pulp::x86::V3::try_new().map(|v| Self(Kind::Avx2(v))));
            out.extend(pulp::x86::V4::try_new().map(|v| Self(Kind::Avx512(v))));
        }
        out
    }

    /// Whether this is AVX-512.
    pub(super) fn is_avx512(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            matches!(self.0, Kind::Avx512(_))
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// Runs a loop compiled for this level. The closure and all that it calls must be `#[inline(always)]`:
    /// what is not inlined here is compiled for the baseline, and four times slower.
    #[inline(always)]
    pub(super) fn run<R>(self, work: impl FnOnce() -> R) -> R {
        match self.0 {
            Kind::Baseline => work(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.vectorize(work),
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
        })
    }
}
