//! The corpus and thousands of variations of it, on stable, in every test run.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pomona_fuzz::{TARGETS, run, seeds};
use pomona_tests::Random;

/// Variations of each input, unless a number is given.
const VARIATIONS: u64 = 150;
/// No input takes longer: templates have fuel, sizes have limits.
const SLOW: Duration = Duration::from_secs(5);

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder(target)).unwrap_or_else(|_| panic!("no corpus of {target}"));
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(path).unwrap())
        })
        .collect()
}

/// Damages an input: bits, bytes that mean something, cuts, repeats, pieces of another one.
fn vary(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff];
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.draw() % 4 {
        let at = if bytes.is_empty() {
            0
        } else {
            random.draw() as usize % bytes.len()
        };
        match random.draw() % 6 {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << (random.draw() % 8),
            1 if !bytes.is_empty() => bytes[at] = TELLING[random.draw() as usize % TELLING.len()],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.draw() as u8),
            4 if !other.is_empty() => {
                let from = random.draw() as usize % other.len();
                let length = (random.draw() % 64) as usize;
                let piece: Vec<u8> = other[from..].iter().take(length).copied().collect();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + (random.draw() % 32) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}

fn timed(target: &str, name: &str, bytes: &[u8]) {
    let began = Instant::now();
    run(target, bytes);
    let took = began.elapsed();
    assert!(took < SLOW, "{target}/{name} took {took:?}: {bytes:02x?}");
}

#[test]
fn the_corpus_and_its_variations_break_nothing() {
    let wanted = std::env::var("POMONA_TEST_VARIATIONS").ok();
    let variations = wanted.and_then(|text| text.parse().ok()).unwrap_or(VARIATIONS);
    for (target, _) in TARGETS {
        let corpus = corpus(target);
        assert!(!corpus.is_empty(), "no corpus of {target}");
        let inputs: Vec<&Vec<u8>> = corpus.values().collect();
        let mut random = Random::new(1);
        for (name, bytes) in &corpus {
            timed(target, name, bytes);
            for i in 0..variations {
                let other = inputs[random.draw() as usize % inputs.len()];
                let varied = vary(bytes, other, &mut random);
                timed(target, &format!("{name}, variation {i}"), &varied);
            }
        }
    }
}

/// Every seed is in the corpus, and is still made as it was: formats that are written do not change
/// by accident.
#[test]
fn the_corpus_has_every_seed() {
    let write = std::env::var_os("POMONA_WRITE_CORPUS").is_some();
    for (target, inputs) in seeds::all() {
        for (name, bytes) in inputs {
            let path = folder(target).join(&name);
            if write && !path.exists() {
                std::fs::create_dir_all(folder(target)).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
            let kept = std::fs::read(&path).unwrap_or_else(|_| panic!("{} is missing", path.display()));
            assert!(kept == bytes, "{} is made differently now", path.display());
        }
    }
}
