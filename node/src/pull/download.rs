//! Downloads over HTTP that go on where they stopped, and are checked by their digest.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use pomona_store::digest;

use super::{Progress, PullError};

/// Attempts in a row that bring a file no further; each goes on where the last one stopped.
const ATTEMPTS: u32 = 5;
/// Largest file.
pub(super) const FILE_BYTES: u64 = 1 << 40;

/// A file at a server.
pub(super) struct RemoteFile {
    pub(super) url: String,
    /// Its name here.
    pub(super) name: String,
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// A client of one server.
pub(super) struct Downloads {
    agent: ureq::Agent,
    token: Option<String>,
}

impl Downloads {
    pub(super) fn new(token: Option<String>) -> Self {
        Self {
            agent: agent(),
            token,
        }
    }

    /// Downloads one file, going on where an earlier attempt stopped.
    pub(super) fn fetch(
        &self,
        file: &RemoteFile,
        folder: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), PullError> {
        let path = folder.join(&file.name);
        let mut fruitless = 0;
        let mut have = 0;
        loop {
            let problem = match self.append(file, &path, progress) {
                Ok(()) => return check(file, &path),
                Err(Stop::Again(problem)) => problem,
                Err(Stop::Never(problem)) => return Err(PullError::at(&file.url, problem)),
            };
            // Attempts that bring the file forward are not counted: they end with the file.
            let now = fs::metadata(&path).map_or(0, |meta| meta.len());
            fruitless = if now > have { 0 } else { fruitless + 1 };
            have = have.max(now);
            if fruitless >= ATTEMPTS {
                let problem = format!("{problem} ({ATTEMPTS} attempts)");
                return Err(PullError::at(&file.url, problem));
            }
            std::thread::sleep(Duration::from_millis(100 << fruitless));
        }
    }

    fn append(&self, file: &RemoteFile, path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), Stop> {
        let have = fs::metadata(path).map_or(0, |meta| meta.len());
        if file.size.is_some_and(|size| size == have) && have > 0 {
            return Ok(());
        }
        let response = self
            .request(&file.url, (have > 0).then_some(have), None)
            .map_err(|error| Stop::Again(error.to_string()))?;
        let status = response.status().as_u16();
        let resumed = status == 206;
        match status {
            200 | 206 => {}
            // Past the end: what is here is not what is there.
            416 => {
                let _ = fs::remove_file(path);
                return Err(Stop::Again("the server refused to resume".to_owned()));
            }
            500..=599 | 429 => return Err(Stop::Again(format!("status {status}"))),
            _ => return Err(Stop::Never(format!("status {status}"))),
        }
        let mut done = if resumed { have } else { 0 };
        let mut out = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(path)
            .map_err(|error| Stop::Never(error.to_string()))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = body
                .read(&mut buffer)
                .map_err(|error| Stop::Again(error.to_string()))?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if done > file.size.unwrap_or(FILE_BYTES) {
                let _ = fs::remove_file(path);
                return Err(Stop::Never(
                    "the file is longer than it was announced to be".to_owned(),
                ));
            }
            out.write_all(&buffer[..n])
                .map_err(|error| Stop::Never(error.to_string()))?;
            progress(Progress {
                file: file.name.clone(),
                done,
                total: file.size.unwrap_or(0),
            });
        }
        match file.size {
            Some(size) if done < size => {
                Err(Stop::Again(format!("the body ended at {done} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// Asks for a URL: all of it or from a byte on, in a format.
    pub(super) fn request(
        &self,
        url: &str,
        from: Option<u64>,
        accept: Option<&str>,
    ) -> Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            // ureq drops it on a redirect to another host.
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        request.call()
    }
}

enum Stop {
    /// Worth another attempt.
    Again(String),
    /// Not.
    Never(String),
}

/// Checks length and digest; a wrong file is removed, so that the next pull starts it afresh.
fn check(file: &RemoteFile, path: &Path) -> Result<(), PullError> {
    let Some(expected) = &file.sha256 else {
        return Ok(());
    };
    let got = digest::of_file(path)?;
    if got == *expected {
        return Ok(());
    }
    let _ = fs::remove_file(path);
    Err(PullError::Damaged {
        file: file.name.clone(),
        problem: format!("its SHA-256 is {got}, it was announced as {expected}"),
    })
}

fn agent() -> ureq::Agent {
    let patience = Some(Duration::from_secs(30));
    ureq::Agent::config_builder()
        .timeout_connect(patience)
        .timeout_recv_response(patience)
        .timeout_per_read(patience)
        .http_status_as_error(false)
        .user_agent(concat!("pomona/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}
