//! Against a list in memory.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use pomona_journal::{Bounds, Journal, lines};
use proptest::prelude::*;

const BOUNDS: Bounds = Bounds {
    file_bytes: 40,
    files: 3,
};

proptest! {
    /// Whatever is added, and however often it is opened anew or cut off, the latest lines are there in order.
    #[test]
    fn the_latest_lines_are_there_in_order(
        steps in proptest::collection::vec((0u8..8, 0usize..30), 1..60),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), BOUNDS).unwrap();
        let mut all = Vec::new();
        for (number, (kind, length)) in steps.into_iter().enumerate() {
            if kind == 0 {
                journal = Journal::open(folder.path(), BOUNDS).unwrap();
            } else if kind == 1 {
                drop(journal);
                cut_off(folder.path());
                journal = Journal::open(folder.path(), BOUNDS).unwrap();
            }
            let line = format!("{number} {}", "x".repeat(length));
            journal.add(&line, kind == 2).unwrap();
            all.push(line);
        }
        // What a crash left of a line is there as a line that nobody has added whole.
        let mut read = lines(folder.path()).unwrap();
        read.retain(|line| !line.starts_with("cut"));
        prop_assert!(all.ends_with(&read), "{read:?}");
        let whole: usize = all.iter().map(|line| line.len() + 1).sum();
        let kept: usize = read.iter().map(|line| line.len() + 1).sum();
        prop_assert!(kept >= whole.min(40), "{kept} of {whole}");
        let files = fs::read_dir(folder.path()).unwrap().count();
        prop_assert!(files <= BOUNDS.files);
    }
}

/// A crash in the middle of a line.
fn cut_off(folder: &std::path::Path) {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let last = files.last().unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(last).unwrap();
    file.write_all(b"cut").unwrap();
}

#[test]
fn files_are_their_owners_alone_and_a_line_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("deep/down");
    assert!(lines(&place).unwrap().is_empty());
    let mut journal = Journal::open(&place, BOUNDS).unwrap();
    assert!(journal.add("a\nb", false).is_err());
    journal.add("a", true).unwrap();
    let file = fs::read_dir(&place).unwrap().next().unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(lines(&place).unwrap(), ["a"]);
}
