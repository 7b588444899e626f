//! Logs in chains of hashes: who changed what, and what went to clouds.

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::Config;
use pomona_decide::audit::{AuditEntry, AuditHash, verify};

use crate::admin::ask;
use crate::tables;

/// One of the logs.
pub(crate) struct Log {
    /// Where the admin API has it.
    pub(crate) path: &'static str,
    /// What is said of an empty one.
    pub(crate) empty: &'static str,
}

/// Who changed what.
pub(crate) const CHANGES: Log = Log {
    path: "/admin/v1/audit",
    empty: "Nothing was changed yet.",
};

/// Shows a log, and fails when its chain of hashes is broken, or has not got the one that was `noted`.
pub(crate) fn run(
    config: &Config,
    log: &Log,
    last: usize,
    noted: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    let noted = noted.map(parse_noted).transpose()?;
    let answer = ask(config, &Method::GET, log.path)?;
    let entries: Vec<AuditEntry> = serde_json::from_value(answer)?;
    let shown = &entries[entries.len().saturating_sub(last)..];
    if json {
        tables::print_json(&serde_json::to_value(shown)?);
    } else {
        show(shown, log.empty);
    }
    check(&entries, noted)?;
    for (last, next) in gaps(&entries).filter(|_| !json) {
        tables::say(&format!(
            "Entries {} to {} are not on this coordinator; ask another one.",
            last + 1,
            next - 1
        ));
    }
    if let (Some(last), false) = (entries.last(), json) {
        tables::say(&format!(
            "The chain holds, from {} to {}. Note its end, to check it later with --noted:\n{}:{}",
            entries[0].number, last.number, last.number, last.hash
        ));
    }
    Ok(())
}

/// Numbers between which entries are missing.
fn gaps(entries: &[AuditEntry]) -> impl Iterator<Item = (u64, u64)> {
    let pairs = entries.windows(2).map(|pair| (pair[0].number, pair[1].number));
    pairs.filter(|(last, next)| *next > last + 1)
}

fn parse_noted(text: &str) -> anyhow::Result<(u64, AuditHash)> {
    let parts = text.split_once(':');
    let parsed = parts.and_then(|(number, hash)| Some((number.parse().ok()?, hash.parse().ok()?)));
    match parsed {
        Some(noted) => Ok(noted),
        None => bail!("`{text}` is no NUMBER:HASH, as `pomona audit` shows it at the end"),
    }
}

fn check(entries: &[AuditEntry], noted: Option<(u64, AuditHash)>) -> anyhow::Result<()> {
    // A coordinator that was off for long has missed some: what is there is checked by itself.
    let runs = entries.chunk_by(|one, next| next.number <= one.number + 1);
    for run in runs {
        // The first one follows from nothing only when it is the first there ever was.
        let before = run.first().filter(|first| first.number == 1);
        if let Err(number) = verify(before.map(|_| AuditHash::default()), run) {
            bail!(
                "the log is broken at entry {number}: it does not follow from what is before it. Compare with the other coordinators"
            );
        }
    }
    let Some((number, hash)) = noted else {
        return Ok(());
    };
    match entries.iter().find(|entry| entry.number == number) {
        Some(entry) if entry.hash == hash => Ok(()),
        Some(_) => bail!("entry {number} has another hash than you noted: the log was altered since"),
        None => bail!("entry {number} is not known here any more, or not yet"),
    }
}

fn show(entries: &[AuditEntry], empty: &str) {
    if entries.is_empty() {
        tables::say(empty);
        return;
    }
    let rows = entries.iter().map(|entry| {
        let deed = &entry.deed;
        vec![
            entry.number.to_string(),
            format!("{} ago", tables::ago(&deed.at_s.into())),
            deed.by.clone(),
            deed.action.clone(),
            deed.subject.clone(),
            deed.detail.clone(),
        ]
    });
    tables::table(&["#", "WHEN", "WHO", "WHAT", "OF", "HOW"], rows.collect());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_was_altered_or_is_another_one_is_found() -> anyhow::Result<()> {
        // As coordinators tell it.
        let entry = |hash: AuditHash| AuditEntry {
            number: 7,
            deed: pomona_decide::Deed::default(),
            hash,
        };
        let (one, other) = (AuditHash([1; 32]), AuditHash([2; 32]));
        assert!(check(&[entry(one)], None).is_ok());
        assert!(check(&[entry(one), entry(one)], None).is_err());
        let later = AuditEntry {
            number: 9,
            ..entry(other)
        };
        let missing = [entry(one), later];
        assert!(check(&missing, None).is_ok());
        assert_eq!(gaps(&missing).collect::<Vec<_>>(), [(7, 9)]);
        let noted = parse_noted(&format!("7:{one}"))?;
        assert!(check(&[entry(one)], Some(noted)).is_ok());
        assert!(check(&[entry(other)], Some(noted)).is_err());
        assert!(check(&[], Some(noted)).is_err());
        for bad in ["", "7", "7:abc", "x:y"] {
            assert!(parse_noted(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
