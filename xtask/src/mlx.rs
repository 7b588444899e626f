//! MLX for this workspace on Linux: library and headers from the Python index, the C layer
//! compiled from the sources that cargo downloaded, bindings by mlx-sys's own settings, and the
//! Cargo configuration that ties them together (`target/mlx/cargo.toml`, included by
//! `.cargo/config.toml`). On macOS mlx-rs builds by itself and nothing is done here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::commands::{cargo, exists, output, run, write_if_changed};
use crate::python;

/// Makes sure that the engine can be built; seconds when it was done before.
pub(crate) fn ensure() -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    system_packages()?;
    let sources = mlx_sys_folder()?;
    let recipe = Recipe::new(sources)?;
    if recipe.folder.join("done").exists() {
        return recipe.write_config();
    }
    // Only one recipe is kept: Cargo does not notice a rebuilt archive under the same path.
    let _ = fs::remove_dir_all(crate::target().join("mlx"));
    for part in ["obj", "lib", "out"] {
        fs::create_dir_all(recipe.folder.join(part))?;
    }
    println!("preparing MLX (about a minute, once)");
    let packages = python::install("requirements")?;
    recipe.compile(&packages)?;
    recipe.bindings(&packages)?;
    recipe.write_config()?;
    fs::write(recipe.folder.join("done"), "")?;
    Ok(())
}

/// Installs what is missing, when this user may.
fn system_packages() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !exists("g++") {
        missing.push("g++");
    }
    let openblas = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .iter()
        .any(|triple| Path::new("/usr/lib").join(triple).join("libopenblas.so").exists());
    if !openblas {
        missing.push("libopenblas-dev");
    }
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if !pip.is_ok_and(|output| output.status.success()) {
        missing.extend(["python3", "python3-pip"]);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    let is_root = output("id", Command::new("id").arg("-u"))?.trim() == "0";
    if !is_root || !exists("apt-get") {
        bail!("system packages are missing; as root: {line}");
    }
    println!("installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run("apt-get", &mut command)
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&arguments)
}

/// The sources of mlx-sys as cargo downloaded them for this workspace's lockfile.
fn mlx_sys_folder() -> anyhow::Result<PathBuf> {
    let json = output(
        "cargo metadata",
        cargo().args(["metadata", "--format-version", "1", "--locked"]),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&json)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let found = packages.iter().find(|package| package["name"] == "mlx-sys");
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.context("mlx-sys is not in the lockfile")?;
    Ok(Path::new(manifest).parent().context("no folder")?.to_owned())
}

struct Recipe {
    sources: PathBuf,
    /// Everything that is generated, named by a hash of all that goes in.
    folder: PathBuf,
}

impl Recipe {
    fn new(sources: PathBuf) -> anyhow::Result<Self> {
        let compiler = output("g++", Command::new("g++").arg("--version"))?;
        let mut hasher = Sha256::new();
        for part in [
            include_str!("mlx.rs"),
            include_str!("../mlx/compat.h"),
            include_str!("../mlx/shim.c"),
            include_str!("../mlx/requirements.txt"),
            &sources.to_string_lossy(),
            &crate::root().to_string_lossy(),
            &compiler,
        ] {
            hasher.update(part);
            hasher.update([0]);
        }
        let key: String = hasher
            .finalize()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            sources,
            folder: crate::target().join("mlx").join(key),
        })
    }

    fn library_folder(packages: &Path) -> PathBuf {
        packages.join("mlx/lib")
    }

    /// `libmlxc.a` from its C++ files, and the small archive of what is missing off Apple.
    fn compile(&self, packages: &Path) -> anyhow::Result<()> {
        println!("  libmlxc.a");
        let mlxc = self.sources.join("src/mlx-c");
        let compat = self.folder.join("compat.h");
        fs::write(&compat, include_str!("../mlx/compat.h"))?;
        let mut files: Vec<PathBuf> = fs::read_dir(mlxc.join("mlx/c"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "cpp"))
            .collect();
        files.sort();
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| -> anyhow::Result<()> {
            let compile = || -> anyhow::Result<()> {
                while let Some(file) = files.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let mut gxx = Command::new("g++");
                    gxx.args(["-std=c++20", "-O2", "-fPIC", "-I"])
                        .arg(packages.join("mlx/include"))
                        .arg("-I")
                        .arg(&mlxc)
                        .arg("-include")
                        .arg(&compat)
                        .arg("-c")
                        .arg(file)
                        .arg("-o")
                        .arg(self.object(file));
                    run("g++", &mut gxx)?;
                }
                Ok(())
            };
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(compile)).collect();
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a compiler thread panicked"))??;
            }
            Ok(())
        })?;
        let objects: Vec<PathBuf> = files.iter().map(|file| self.object(file)).collect();
        self.archive("libmlxc.a", &objects)?;
        let shim = self.folder.join("shim.c");
        fs::write(&shim, include_str!("../mlx/shim.c"))?;
        let object = self.object(&shim);
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-fPIC", "-DOPENBLAS", "-c"])
            .arg(&shim)
            .arg("-o")
            .arg(&object);
        run("gcc", &mut gcc)?;
        self.archive("libmlxshim.a", &[object])
    }

    fn object(&self, source: &Path) -> PathBuf {
        let name = source.file_stem().unwrap_or_default();
        self.folder.join("obj").join(name).with_extension("o")
    }

    fn archive(&self, name: &str, objects: &[PathBuf]) -> anyhow::Result<()> {
        let mut ar = Command::new("ar");
        run(
            "ar",
            ar.arg("crs")
                .arg(self.folder.join("lib").join(name))
                .args(objects),
        )
    }

    /// `bindings.rs`, made with mlx-sys's own bindgen settings and the bindgen of our lockfile.
    fn bindings(&self, packages: &Path) -> anyhow::Result<()> {
        println!("  bindings.rs");
        let project = self.folder.join("bindgen");
        fs::create_dir_all(project.join("src"))?;
        let lock = fs::read_to_string(crate::root().join("Cargo.lock"))?;
        let version = lock
            .split("[[package]]")
            .find(|package| package.contains("name = \"bindgen\"\n"))
            .and_then(|package| package.split("version = \"").nth(1)?.split('"').next())
            .context("bindgen is not in the lockfile")?;
        fs::write(
            project.join("Cargo.toml"),
            format!(
                "[package]\nname = \"mlx-bindgen\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
                 [dependencies]\nbindgen = \"={version}\"\n[profile.dev]\ndebug = false\n[workspace]\n"
            ),
        )?;
        let headers = output("gcc", Command::new("gcc").arg("-print-file-name=include"))?;
        fs::write(project.join("src/main.rs"), self.bindgen_program(headers.trim()))?;
        fs::copy(crate::root().join("Cargo.lock"), project.join("Cargo.lock"))?;
        let mut command = cargo();
        command
            .args(["run", "--quiet", "--manifest-path"])
            .arg(project.join("Cargo.toml"))
            .env("LIBCLANG_PATH", packages.join("clang/native"))
            .env("CARGO_TARGET_DIR", self.folder.join("bindgen/target"))
            .env_remove("RUSTFLAGS");
        run("bindgen", &mut command)?;
        // Only its result is needed.
        let _ = fs::remove_dir_all(self.folder.join("bindgen"));
        Ok(())
    }

    fn bindgen_program(&self, compiler_headers: &str) -> String {
        let sources = self.sources.display();
        let folder = self.folder.display();
        format!(
            r##"
#[allow(dead_code)]
#[path = "{sources}/src/bindgen_config.rs"]
mod bindgen_config;

fn main() {{
    let root = std::path::Path::new("{sources}/src/mlx-c");
    let headers = bindgen_config::discover_headers(root).unwrap();
    bindgen_config::builder(root, &headers)
        .clang_arg("-include{folder}/compat.h")
        .clang_args(["-isystem", "{compiler_headers}"])
        .blocklist_type("float16_t")
        .raw_line("#[repr(transparent)] #[derive(Debug, Default, Copy, Clone, PartialEq)] pub struct float16_t(pub u16);")
        .generate()
        .unwrap()
        .write_to_file("{folder}/out/bindings.rs")
        .unwrap();
}}
"##
        )
    }

    /// The configuration that replaces mlx-sys's build script. `lib_dir` reaches the engine's
    /// build script as `DEP_MLX_LIB_DIR`, which sets the run path.
    fn write_config(&self) -> anyhow::Result<()> {
        let packages = crate::target().join("py/requirements");
        let libraries = Self::library_folder(&packages);
        let (libraries, folder) = (libraries.display(), self.folder.display());
        let text = format!(
            r#"# Made by `cargo xtask`.
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = ["native={folder}/lib", "native={libraries}"]
rustc-link-lib = ["static:-bundle,+whole-archive=mlxshim", "static:-bundle=mlxc", "dylib=openblas", "dylib=mlx", "dylib=stdc++"]
rustc-env = {{ OUT_DIR = "{folder}/out" }}
lib_dir = "{libraries}"

# Type checking only.
[target.aarch64-apple-darwin.mlx]
rustc-env = {{ OUT_DIR = "{folder}/out" }}
"#
        );
        write_if_changed(&crate::target().join("mlx/cargo.toml"), &text)
    }
}
