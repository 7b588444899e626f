//! Logits of tiny random models of every variant against mlx-lm's, whatever the chunking.
//! The goldens are made by `make_tiny.py`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test")]

use std::path::{Path, PathBuf};

use mlx_rs::transforms::eval;
use pomona_engine::backend::Backend;
use pomona_engine::kv::KvSlabs;
use pomona_engine::llama::Llama;
use pomona_engine::loader;
use pomona_engine::pass::Feed;
use pomona_store::ModelFolder;

/// The bar: largest difference of any logit.
const TOLERANCE: f32 = 1e-3;
const CAPACITY: u32 = 256;

struct Tiny {
    name: String,
    model: Llama,
    folder: ModelFolder,
    prompt: Vec<u32>,
    logits: Vec<f32>,
}

fn tiny_models() -> Vec<Tiny> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 16, "all variants are there");
    paths
        .into_iter()
        .map(|path| {
            let golden: serde_json::Value =
                serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap();
            let folder = ModelFolder::open(&path).unwrap();
            Tiny {
                name: path.file_name().unwrap().to_string_lossy().into_owned(),
                model: loader::load(&folder, &Backend::detect()).unwrap(),
                folder,
                prompt: serde_json::from_value(golden["prompt"].clone()).unwrap(),
                logits: serde_json::from_value(golden["logits"].clone()).unwrap(),
            }
        })
        .collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_are_mlx_lms_whatever_the_chunks() {
    for tiny in tiny_models() {
        for chunk in [1, 7, 64, tiny.prompt.len()] {
            let mut kv = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
            kv.resize(CAPACITY, 1).unwrap();
            let mut last = Vec::new();
            for (i, tokens) in tiny.prompt.chunks(chunk).enumerate() {
                let start = (i * chunk) as u32;
                let wants_logits = start as usize + tokens.len() == tiny.prompt.len();
                let feed = Feed {
                    capacity: CAPACITY,
                    row: 0,
                    start,
                    tokens: tokens.to_vec(),
                    wants_logits,
                };
                if let Some(logits) = tiny.model.step(vec![feed], &mut kv).unwrap() {
                    logits.eval().unwrap();
                    last = logits.as_slice::<f32>().to_vec();
                }
            }
            let difference = largest_difference(&last, &tiny.logits);
            assert!(
                difference < TOLERANCE,
                "{} in chunks of {chunk}: {difference}",
                tiny.name
            );
        }
    }
}

/// Five rows at different positions, decoding together while another is prefilled beside them:
/// each gets what it would get alone.
#[test]
fn a_row_in_a_ragged_batch_gets_the_logits_it_gets_alone() {
    for tiny in tiny_models() {
        let lengths = [3usize, 50, 17, 99, 64];
        let mut kv = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
        kv.resize(CAPACITY, 6).unwrap();
        for (row, len) in lengths.iter().enumerate() {
            let tokens = tiny.prompt[..*len].to_vec();
            let feed = Feed {
                capacity: CAPACITY,
                row: row as u32,
                start: 0,
                tokens,
                wants_logits: false,
            };
            assert!(tiny.model.step(vec![feed], &mut kv).unwrap().is_none());
        }
        let mut feeds: Vec<Feed> = lengths
            .iter()
            .enumerate()
            .map(|(row, len)| Feed {
                capacity: CAPACITY,
                row: row as u32,
                start: *len as u32,
                tokens: vec![tiny.prompt[*len]],
                wants_logits: true,
            })
            .collect();
        feeds.push(Feed {
            capacity: CAPACITY,
            row: 5,
            start: 0,
            tokens: tiny.prompt.clone(),
            wants_logits: true,
        });
        let together = tiny.model.step(feeds, &mut kv).unwrap().unwrap();
        together.eval().unwrap();
        let vocab = tiny.logits.len();
        let rows: Vec<&[f32]> = together.as_slice::<f32>().chunks(vocab).collect();
        assert!(
            largest_difference(rows[5], &tiny.logits) < TOLERANCE,
            "{}",
            tiny.name
        );
        for (row, len) in lengths.iter().enumerate() {
            let mut alone = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
            alone.resize(CAPACITY, 1).unwrap();
            let tokens = tiny.prompt[..=*len].to_vec();
            let feed = Feed {
                capacity: CAPACITY,
                row: 0,
                start: 0,
                tokens,
                wants_logits: true,
            };
            let logits = tiny.model.step(vec![feed], &mut alone).unwrap().unwrap();
            logits.eval().unwrap();
            let difference = largest_difference(logits.as_slice::<f32>(), rows[row]);
            assert!(difference < TOLERANCE, "{} row {row}: {difference}", tiny.name);
        }
    }
}

/// A pass rests after its first layer; meanwhile one of its sequences ends, the others' rows
/// move, the slab grows, and somebody else runs. What is left of it gives what it gives alone.
#[test]
fn a_pass_that_rested_gives_the_logits_it_gives_in_one_go() {
    for tiny in tiny_models() {
        let feed = |row: u32, start: usize, tokens: &[u32], wants_logits: bool| Feed {
            capacity: CAPACITY,
            row,
            start: start as u32,
            tokens: tokens.to_vec(),
            wants_logits,
        };
        let (prompt, model) = (&tiny.prompt, &tiny.model);
        let mut kv = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
        kv.resize(CAPACITY, 3).unwrap();
        for (row, len) in [(0, 50), (2, 17)] {
            model
                .step(vec![feed(row, 0, &prompt[..len], false)], &mut kv)
                .unwrap();
        }
        let feeds = vec![
            feed(0, 50, &prompt[50..51], true),
            feed(1, 0, prompt, true),
            feed(2, 17, &prompt[17..18], true),
        ];
        let mut pass = model.begin(feeds).unwrap();
        model.advance(&mut pass, &mut kv, 1).unwrap();
        assert!(model.layers_left(&pass) > 0, "{} has one layer", tiny.name);
        eval([pass.x()]).unwrap();

        // The first sequence ends; the last row fills its place, another sequence takes the last.
        kv.copy_row(CAPACITY, 2, 0, CAPACITY).unwrap();
        kv.resize(CAPACITY, 5).unwrap();
        model
            .step(vec![feed(2, 0, &prompt[..40], false)], &mut kv)
            .unwrap();
        let places = [None, Some((CAPACITY, 1)), Some((CAPACITY, 0))];
        pass.relocate(&places, &Backend::detect()).unwrap();

        let left = model.layers_left(&pass);
        model.advance(&mut pass, &mut kv, left).unwrap();
        let logits = model.logits(&pass).unwrap().unwrap();
        logits.eval().unwrap();
        let rows: Vec<&[f32]> = logits.as_slice::<f32>().chunks(tiny.logits.len()).collect();
        let difference = largest_difference(rows[0], &tiny.logits);
        assert!(difference < TOLERANCE, "{}: {difference}", tiny.name);
        let mut alone = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
        alone.resize(CAPACITY, 1).unwrap();
        let logits = model
            .step(vec![feed(0, 0, &prompt[..18], true)], &mut alone)
            .unwrap();
        let logits = logits.unwrap();
        logits.eval().unwrap();
        let difference = largest_difference(rows[1], logits.as_slice::<f32>());
        assert!(difference < TOLERANCE, "{}, second row: {difference}", tiny.name);
    }
}

/// Rows survive the growth of their slab, and a saved prefix gives what computing it gives.
#[test]
fn kv_rows_survive_growth_moves_and_restoring() {
    let tiny = tiny_models().remove(0);
    let mut kv = KvSlabs::new(&tiny.folder.config, Backend::detect().dtype);
    kv.resize(CAPACITY, 1).unwrap();
    let split = 100;
    let head = tiny.prompt[..split].to_vec();
    let feed = Feed {
        capacity: CAPACITY,
        row: 0,
        start: 0,
        tokens: head,
        wants_logits: false,
    };
    tiny.model.step(vec![feed], &mut kv).unwrap();
    kv.resize(CAPACITY, 3).unwrap();
    kv.copy_row(CAPACITY, 0, 2, split as u32).unwrap();
    let saved = kv.save(CAPACITY, 2, split as u32).unwrap();
    kv.restore(CAPACITY, 1, &saved, split as u32).unwrap();
    for row in 0..3 {
        let tail = tiny.prompt[split..].to_vec();
        let feed = Feed {
            capacity: CAPACITY,
            row,
            start: split as u32,
            tokens: tail,
            wants_logits: true,
        };
        let logits = tiny.model.step(vec![feed], &mut kv).unwrap().unwrap();
        logits.eval().unwrap();
        assert!(
            largest_difference(logits.as_slice::<f32>(), &tiny.logits) < TOLERANCE,
            "row {row}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn openblas_is_the_blas_in_use() {
    let blas = pomona_engine::backend::blas_library();
    assert!(blas.contains("openblas"), "{blas}");
}
