//! This machine: memory, disk, processor, and the programs that a local node or a GPU build wants.

use std::path::Path;

use super::{Finding, Level};
use crate::node::{docker, java};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Looks at this machine. `cache` is where data, nodes and journals lie. Nothing is changed; `java` and `docker` are
/// asked for their versions.
pub fn machine(cache: &Path) -> Vec<Finding> {
    let mut found = vec![system(), memory(), disk(cache), processor()];
    found.extend(map_count());
    let java = match java::find_java() {
        Ok(java) => Finding::ok("java", format!("{} in `{}`", java.release, java.home.display())),
        Err(e) => missing("java", &e),
    };
    let mvn = match java::find_mvn() {
        Ok(path) => Finding::ok("mvn", format!("`{}`", path.display())),
        Err(e) => missing("mvn", &e),
    };
    let docker = if docker::answers() {
        Finding::ok("docker", "answers")
    } else {
        let note =
            "containers are one way to a local node; `nsparse cluster up` can also assemble one with Java and mvn";
        Finding::ok("docker", "no engine answers").bad(Level::Note, note, "")
    };
    found.extend([java, mvn, docker, gpu()]);
    found
}

fn missing(what: &str, error: &crate::Error) -> Finding {
    let meaning = format!("{error}; `nsparse cluster up` needs it where no Docker answers");
    Finding::ok(what, "not found").bad(Level::Note, meaning, error.hint().unwrap_or_default())
}

fn system() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    Finding::ok("system", format!("{os} {} {arch}, {cores} processors for this process", release.trim()))
}

fn memory() -> Finding {
    let text = read("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| -> Option<f64> {
        text.lines().find_map(|l| l.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok())
    };
    let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else {
        return Finding::ok("memory", "unknown").bad(Level::Note, "/proc/meminfo does not say", "");
    };
    // A container may get less than the machine has.
    let limit = read("/sys/fs/cgroup/memory.max").and_then(|t| t.trim().parse::<f64>().ok()).map(|b| b / 1024.0);
    let of_all = limit.filter(|l| *l < total);
    let (total, available) = of_all.map_or((total, available), |l| (l, available.min(l)));
    let gib = |kib: f64| kib * 1024.0 / GIB;
    let value = format!("{:.1} GiB, {:.1} GiB of it available", gib(total), gib(available));
    let finding = Finding::ok("memory", value);
    if gib(available) < 1.0 {
        let meaning = "encoding wants about 1 GiB, a local node 2 GiB, training 3 GiB and more";
        return finding.bad(Level::Warning, meaning, "end other programs, or take a larger machine");
    }
    finding
}

/// Free space of the file system that holds a folder, or will hold it.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

fn disk(cache: &Path) -> Finding {
    let Some(free) = free_bytes(cache) else {
        return Finding::ok("disk", "unknown").bad(Level::Note, format!("`{}` does not say", cache.display()), "");
    };
    let gib = free as f64 / GIB;
    let finding = Finding::ok("disk", format!("{gib:.1} GiB free for `{}`", cache.display()));
    let mend = "free space, or choose another folder with NSPARSE_CACHE";
    if gib < 0.2 {
        finding.bad(Level::Problem, "journals and fetched data would not fit", mend)
    } else if gib < 2.0 {
        finding.bad(Level::Warning, "a local node takes about 1 GiB and its data, larger data sets more", mend)
    } else {
        finding
    }
}

#[cfg(target_arch = "x86_64")]
fn processor() -> Finding {
    let features = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("AVX-512F", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512 VNNI", std::is_x86_feature_detected!("avx512vnni")),
    ];
    let there: Vec<&str> = features.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let model = read("/proc/cpuinfo")
        .and_then(|t| Some(t.lines().find_map(|l| l.strip_prefix("model name"))?.split_once(':')?.1.trim().to_owned()));
    let finding = Finding::ok("processor", format!("{}: {}", model.unwrap_or_default(), there.join(", ")));
    if features[0].1 && features[1].1 {
        finding
    } else {
        finding.bad(Level::Note, "without AVX2 and FMA the encoder is several times slower", "")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> Finding {
    Finding::ok("processor", std::env::consts::ARCH)
}

/// A node that listens beyond loopback refuses to start below this.
fn map_count() -> Option<Finding> {
    let count: u64 = read("/proc/sys/vm/max_map_count")?.trim().parse().ok()?;
    let finding = Finding::ok("vm.max_map_count", count.to_string());
    Some(if count < 262_144 {
        let meaning =
            "an OpenSearch that listens beyond this machine refuses to start; `nsparse cluster up` is not concerned";
        finding.bad(Level::Note, meaning, "as root: sysctl -w vm.max_map_count=262144")
    } else {
        finding
    })
}

fn gpu() -> Finding {
    let driver = read("/proc/driver/nvidia/version").and_then(|t| {
        let line = t.lines().next()?.to_owned();
        Some(
            line.split_once(':')
                .map_or(line.clone(), |(_, rest)| rest.split_whitespace().collect::<Vec<_>>().join(" ")),
        )
    });
    match driver {
        Some(version) => Finding::ok("GPU driver", version),
        None => Finding::ok("GPU driver", "none").bad(Level::Note, "training and encoding run on the processor", ""),
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
