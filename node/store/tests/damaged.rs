//! Damaged model files: truncated at every place, missing, contradicting each other. Every one is
//! a named error; none panics, none is opened.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

use std::fs;
use std::path::{Path, PathBuf};

use pomona_store::{ModelFolder, gguf::Gguf};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../engine/tests/tiny")
        .join(name)
}

fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(tiny("q4").join(name), folder.path().join(name)).unwrap();
    }
    ModelFolder::open(folder.path()).expect("the copy is sound");
    folder
}

fn refusal(folder: &Path) -> String {
    let error = ModelFolder::open(folder).map(|_| ()).expect_err("refused");
    assert!(!error.to_string().is_empty());
    error.to_string()
}

#[test]
fn a_truncated_weight_file_is_refused_wherever_it_ends() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in (0..whole.len())
        .step_by(whole.len() / 97)
        .chain([0, 1, 7, 8, 9, whole.len() - 1])
    {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(refusal(folder.path()).contains("model.safetensors"), "{len}");
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(refusal(folder.path()).contains("truncated or padded"));
}

#[test]
fn flipped_header_bytes_never_panic() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for at in 0..400 {
        for bit in [0x01, 0x20, 0x80] {
            let mut bad = whole.clone();
            bad[at] ^= bit;
            fs::write(&path, &bad).unwrap();
            // A flipped letter of a name may leave a sound file with another tensor.
            let _ = ModelFolder::open(folder.path());
        }
    }
}

#[test]
fn a_header_that_claims_the_whole_memory_is_refused_before_it_is_read() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(refusal(folder.path()).contains("claims"));
}

#[test]
fn missing_shards_and_lying_indexes_are_named() {
    let folder = copy();
    let index = folder.path().join("model.safetensors.index.json");
    for (json, word) in [
        (
            r#"{"weight_map":{"a":"model-00002-of-00002.safetensors"}}"#,
            "is missing",
        ),
        (r#"{"weight_map":{"a":"model.safetensors"}}"#, "is not in"),
        (r#"{"weight_map":{"a":"../../etc/passwd"}}"#, "is missing"),
        (r#"{"weight_map":[]}"#, "no weight_map"),
        ("nonsense", "not JSON"),
    ] {
        fs::write(&index, json).unwrap();
        assert!(refusal(folder.path()).contains(word), "{json}");
    }
    fs::remove_file(index).unwrap();
    fs::copy(
        folder.path().join("model.safetensors"),
        folder.path().join("model-2.safetensors"),
    )
    .unwrap();
    assert!(refusal(folder.path()).contains("second file"));
    fs::remove_file(folder.path().join("model-2.safetensors")).unwrap();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("no model*.safetensors"));
}

#[test]
fn broken_configurations_are_named() {
    let folder = copy();
    for json in ["", "[]", "{}", "null", r#"{"model_type":"gpt2"}"#] {
        fs::write(folder.path().join("config.json"), json).unwrap();
        assert!(refusal(folder.path()).contains("config.json"), "{json}");
    }
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(refusal(folder.path()).contains("config.json"));
}

/// A small GGUF header, field by field.
fn gguf(tensors: u64, metas: u64, rest: &[u8]) -> Vec<u8> {
    [
        b"GGUF".as_slice(),
        &3u32.to_le_bytes(),
        &tensors.to_le_bytes(),
        &metas.to_le_bytes(),
        rest,
    ]
    .concat()
}

#[test]
fn damaged_gguf_files_are_refused_by_name() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let tensor = |dims: &[u64], kind: u32, offset: u64| {
        let mut bytes = text("t");
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    for (bytes, word) in [
        (b"".to_vec(), "ends inside"),
        (b"GGML\x03\0\0\0".to_vec(), "not a GGUF"),
        ([b"GGUF".as_slice(), &9u32.to_le_bytes()].concat(), "version 9"),
        (gguf(u64::MAX, 0, b""), "tensors, more than"),
        (gguf(0, u64::MAX, b""), "metadata entries, more than"),
        (gguf(0, 1, &u64::MAX.to_le_bytes()), "bytes in a string"),
        (
            gguf(0, 1, &[text("k"), 99u32.to_le_bytes().to_vec()].concat()),
            "unknown metadata type",
        ),
        (
            gguf(
                0,
                1,
                &[
                    text("k"),
                    9u32.to_le_bytes().to_vec(),
                    4u32.to_le_bytes().to_vec(),
                    u64::MAX.to_le_bytes().to_vec(),
                ]
                .concat(),
            ),
            "items in an array",
        ),
        (gguf(1, 0, &tensor(&[], 0, 0)), "dimensions"),
        (gguf(1, 0, &tensor(&[1; 9], 0, 0)), "dimensions"),
        (gguf(1, 0, &tensor(&[u64::MAX], 0, 0)), "in a dimension"),
        (
            gguf(1, 0, &tensor(&[1 << 30, 1 << 30, 1 << 30], 0, 0)),
            "overflows",
        ),
        (gguf(1, 0, &tensor(&[4], 14, 0)), "type 14"),
        (gguf(1, 0, &tensor(&[33], 2, 0)), "multiple of 32"),
        (gguf(1, 0, &tensor(&[1024], 0, 0)), "beyond the end"),
        (gguf(1, 0, &tensor(&[4], 0, u64::MAX)), "beyond the end"),
    ] {
        fs::write(&path, &bytes).unwrap();
        let error = Gguf::open(&path).map(|_| ()).expect_err(word).to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}
