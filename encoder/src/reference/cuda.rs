//! Opening an NVIDIA GPU: NVIDIA's libraries, cuBLAS' arithmetic, and the memory pool.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::{result, sys};
use candle_core::cuda_backend::set_gemm_reduced_precision_f32;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

use crate::Result;

/// File names of the libraries that the build left to be found when a GPU is asked for, each after those it
/// needs. `scripts/cuda-build.sh` sets them; a build without it is linked to its libraries as usual.
const LIBRARIES: Option<&str> = option_env!("NSPARSE_CUDA_LIBRARIES");

/// The GPU of this number, counted from 0, with TF32 off.
///
/// # Errors
/// If a library or the driver is missing, or there is no such GPU.
pub(crate) fn open(number: usize) -> Result<Device> {
    load_libraries(LIBRARIES.unwrap_or_default(), &folders())?;
    let device = Device::new_cuda(number).map_err(|e| {
        nsparse_core::Error::invalid_with_hint(
            // candle adds a backtrace below its message.
            format!("GPU {number} cannot be used: {}", e.to_string().lines().next().unwrap_or_default()),
            "see `nvidia-smi` for the GPUs of this machine and its driver's CUDA version, or use the device cpu",
        )
    })?;
    set_gemm_reduced_precision_f32(false);
    keep_freed_memory(number);
    Ok(device)
}

/// Loads libraries into the process, where calls into them find their symbols.
fn load_libraries(names: &str, folders: &[PathBuf]) -> Result<()> {
    for name in names.split_whitespace() {
        let candidates = std::iter::once(PathBuf::from(name)).chain(folders.iter().map(|folder| folder.join(name)));
        let mut errors = Vec::new();
        let found = candidates.into_iter().find_map(|path| match load(&path) {
            Ok(library) => Some(library),
            Err(e) => {
                errors.push(e);
                None
            }
        });
        // It stays for as long as the process lives: symbols of it are bound on first use.
        std::mem::forget(found.ok_or_else(|| missing(name, &errors[0]))?);
    }
    Ok(())
}

fn load(path: &Path) -> std::result::Result<Library, libloading::Error> {
    // SAFETY: NVIDIA's libraries are made to be loaded at run time; their initialisers ask nothing of the caller.
    unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) }
}

fn missing(name: &str, error: &libloading::Error) -> nsparse_core::Error {
    let hint = if name.starts_with("libcuda.") {
        "it comes with NVIDIA's driver: see whether `nvidia-smi` works, or use the device cpu"
    } else {
        "set CUDA_HOME to a CUDA toolkit of the version that nsparse was built with, or call \
         `scripts/cuda-toolkit.sh run` in nsparse's sources, which brings its libraries; or use the device cpu"
    };
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    nsparse_core::Error::invalid_with_hint(format!("The library {name} cannot be loaded: {reason}"), hint)
}

/// Where libraries are looked for besides the system's own places.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let toolkits = [variable("CUDA_HOME"), variable("CUDA_PATH"), Some(PathBuf::from("/usr/local/cuda"))];
    let mut out: Vec<PathBuf> =
        toolkits.into_iter().flatten().flat_map(|root| [root.join("lib64"), root.join("lib")]).collect();
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    // What `scripts/cuda-toolkit.sh` brought, one folder a version.
    let brought = cache.and_then(|cache| std::fs::read_dir(cache.join("nsparse/cuda")).ok());
    let mut versions: Vec<OsString> = brought.into_iter().flatten().flatten().map(|e| e.path().into()).collect();
    versions.sort();
    out.extend(versions.into_iter().rev().map(|version| PathBuf::from(version).join("lib")));
    out
}

/// Freed memory stays with the process for the next step instead of going back to the driver at every wait for
/// the GPU. Where this fails nothing but time is lost.
fn keep_freed_memory(number: usize) {
    let Ok(device) = result::device::get(number as std::ffi::c_int) else { return };
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: `pool` and `threshold` live through the calls, and the attribute's value is a 64-bit number.
    unsafe {
        if sys::cuDeviceGetDefaultMemPool(&raw mut pool, device) == sys::CUresult::CUDA_SUCCESS {
            sys::cuMemPoolSetAttribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw mut threshold).cast(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let message = |name: &str| {
            let error = load_libraries(name, &[folder.path().to_path_buf()]).unwrap_err();
            format!("{error} {}", error.hint().unwrap())
        };
        let driver = message("libcuda.so.0");
        assert!(driver.contains("libcuda.so.0") && driver.contains("nvidia-smi"), "{driver}");
        let toolkit = message("libcublas.so.0");
        assert!(toolkit.contains("libcublas.so.0") && toolkit.contains("CUDA_HOME"), "{toolkit}");
    }

    #[test]
    fn libraries_are_found_by_name_and_in_the_folders_given() {
        load_libraries("libc.so.6 libm.so.6", &[]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let libm = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib"]
            .iter()
            .map(|folder| Path::new(folder).join("libm.so.6"))
            .find(|path| path.exists())
            .unwrap();
        std::os::unix::fs::symlink(libm, folder.path().join("libnsparse-test.so.1")).unwrap();
        load_libraries("libnsparse-test.so.1", &[folder.path().to_path_buf()]).unwrap();
        assert!(load_libraries("libnsparse-test.so.1", &[]).is_err());
    }
}
