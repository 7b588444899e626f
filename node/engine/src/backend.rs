//! What the engine computes on, and how it says so.

use mlx_rs::Dtype;
use pomona_common::report::EngineBuild;

/// Version of MLX that this build binds; the set-up pins the same.
const MLX_VERSION: &str = "0.32.2";

/// A back end and the rules that follow from it.
#[derive(Debug, Clone)]
pub struct Backend {
    /// `cpu` or `metal`.
    pub name: &'static str,
    /// Type of activations and of weights that are not quantised.
    pub dtype: Dtype,
    /// Whether quantised weights stay so: their kernels are slow on CPUs.
    pub keep_quantized: bool,
    /// Whether attention uses the fused kernel (there is none on CPUs).
    pub fused_attention: bool,
    /// Key lengths are rounded up to a multiple of this, so that shapes repeat where they are
    /// compiled.
    pub length_step: i32,
}

impl Backend {
    /// The back end of this build and machine.
    pub fn detect() -> Self {
        if cfg!(feature = "metal") {
            Self {
                name: "metal",
                dtype: Dtype::Bfloat16,
                keep_quantized: true,
                fused_attention: true,
                length_step: 64,
            }
        } else {
            Self {
                name: "cpu",
                dtype: Dtype::Float32,
                keep_quantized: false,
                fused_attention: false,
                length_step: 1,
            }
        }
    }

    /// Bytes of one number in the KV cache.
    pub fn kv_number_bytes(&self) -> u64 {
        match self.dtype {
            Dtype::Float32 => 4,
            _ => 2,
        }
    }

    /// The build as it is reported.
    pub fn build(&self) -> EngineBuild {
        let blas = blas_library();
        let precision = match self.dtype {
            Dtype::Float32 => "f32",
            _ => "bf16",
        };
        let threads = if self.name == "cpu" { blas_threads() } else { 0 };
        let identity = format!(
            "{}|{MLX_VERSION}|{}|{precision}|{blas}",
            env!("CARGO_PKG_VERSION"),
            self.name
        );
        EngineBuild {
            mlx_version: MLX_VERSION.to_owned(),
            build: pomona_store::digest::of_bytes(identity.as_bytes())[..16].to_owned(),
            backend: self.name.to_owned(),
            precision: precision.to_owned(),
            threads,
            blas,
            scheduler: pomona_sched::REVISION.to_owned(),
        }
    }
}

/// Threads that OpenBLAS uses: its environment variable, or every processor.
fn blas_threads() -> u32 {
    ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
        .or_else(|| std::thread::available_parallelism().ok().map(|n| n.get() as u32))
        .unwrap_or(1)
}

/// File name of the BLAS library in use; empty off Linux or when none is mapped. The wheel's
/// reference BLAS may be mapped as well: OpenBLAS comes first in the search order when it is there.
pub fn blas_library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter_map(|path| path.rsplit('/').next())
        .filter(|file| file.contains("blas"))
        .collect();
    let openblas = mapped.iter().find(|file| file.contains("openblas"));
    openblas
        .or(mapped.first())
        .map_or_else(String::new, |file| (*file).to_owned())
}
