//! Lines that are only added to, in files of bounded size and number. The oldest file goes when there are too
//! many. A crash cuts off the last line at most: what is left of it is a line as well, which readers tell by
//! its form.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// End of the names of the files, which are numbers that count up.
const ENDING: &str = "jsonl";

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes after which a new file is begun.
    pub file_bytes: u64,
    /// Files.
    pub files: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    bounds: Bounds,
    file: File,
    number: u64,
    bytes: u64,
}

impl Journal {
    /// Opens the folder, which is made if it is not there, to add to it. Files are their owner's alone.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open(folder: &Path, bounds: Bounds) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let number = numbers(folder)?.last().copied().unwrap_or(1);
        let (file, bytes) = begin(folder, number)?;
        let mut journal = Self {
            folder: folder.to_owned(),
            bounds,
            file,
            number,
            bytes,
        };
        journal.make_room()?;
        Ok(journal)
    }

    /// Adds a line, which has no line's end in it. With `is_durable` it is on disk when this comes back.
    ///
    /// # Errors
    /// It cannot be written; what was written before stays.
    pub fn add(&mut self, line: &str, is_durable: bool) -> io::Result<()> {
        if line.contains('\n') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than one line"));
        }
        if self.bytes >= self.bounds.file_bytes {
            (self.file, self.bytes) = begin(&self.folder, self.number + 1)?;
            self.number += 1;
            self.make_room()?;
        }
        // In one call, so that a crash cuts off one line at most.
        let whole = format!("{line}\n");
        self.bytes += whole.len() as u64;
        self.file.write_all(whole.as_bytes())?;
        if is_durable {
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn make_room(&mut self) -> io::Result<()> {
        let numbers = numbers(&self.folder)?;
        let surplus = numbers.len().saturating_sub(self.bounds.files.max(1));
        for number in &numbers[..surplus] {
            fs::remove_file(path(&self.folder, *number))?;
        }
        Ok(())
    }
}

/// All lines of a folder, the oldest first; none when it is not there.
///
/// # Errors
/// A file cannot be read.
pub fn lines(folder: &Path) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for number in numbers(folder)? {
        let mut reader = BufReader::new(File::open(path(folder, number))?);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            // One that is being written has no end yet.
            if line.pop_if(|last| *last == b'\n').is_some()
                && let Ok(text) = std::str::from_utf8(&line)
                && !text.is_empty()
            {
                all.push(text.to_owned());
            }
            line.clear();
        }
    }
    Ok(all)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.{ENDING}"))
}

/// The numbers of the files, in order.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_suffix(ENDING)?.strip_suffix('.')?.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// A file to add to, and how long it is. What a crash has cut off there gets an end.
fn begin(folder: &Path, number: u64) -> io::Result<(File, u64)> {
    let path = path(folder, number);
    let mut options = OpenOptions::new();
    let mut file = options
        .create(true)
        .read(true)
        .append(true)
        .mode(0o600)
        .open(&path)?;
    let mut bytes = file.metadata()?.len();
    let mut last = *b"\n";
    if bytes > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        file.write_all(b"\n")?;
        bytes += 1;
    }
    Ok((file, bytes))
}
