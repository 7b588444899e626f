use std::os::unix::fs::PermissionsExt;

use super::*;

/// A stand-in for `hdiutil`: an image is a file with its key, and opens with that one only. What it
/// was called with is written down, and whether an image is attached.
const STAND_IN: &str = r#"#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
for last; do :; done
case "$1" in
create) cat > "$last" ;;
attach) [ "$(cat)" = "$(cat "$last")" ] || { echo "Authentication error" >&2; exit 1; }
touch "$(dirname "$0")/attached" ;;
detach) rm "$(dirname "$0")/attached" ;;
esac
"#;

/// Whether the stand-in beside the node's folder has attached something.
fn is_attached(models: &Path) -> bool {
    models
        .ancestors()
        .nth(2)
        .is_some_and(|folder| folder.join("attached").exists())
}

fn stand_in(folder: &Path) -> io::Result<PathBuf> {
    let program = folder.join("hdiutil");
    fs::write(&program, STAND_IN)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[test]
fn the_volume_is_made_once_opens_with_its_key_and_takes_what_lay_in_the_clear() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let node = folder.path().join("node");
    fs::create_dir_all(node.join("models/org--model"))?;
    fs::write(node.join("models/org--model/config.json"), "{}")?;
    let program = stand_in(folder.path())?;
    let key = StoreKey([7; 32]);
    let calls = || fs::read_to_string(folder.path().join("calls"));

    let vault = Vault::with(&node, Some(program.clone()), is_attached);
    assert_eq!(vault.state(), State::Closed);
    assert!(vault.begin());
    assert_eq!(vault.state(), State::Opening);
    vault.open(&key);
    assert!(!vault.begin(), "it is open");
    assert_eq!(vault.state(), State::Open);
    assert_eq!(
        fs::read_to_string(node.join("models/org--model/config.json"))?,
        "{}"
    );
    assert!(!node.join(CLEAR).exists());
    let verbs: Vec<String> = calls()?
        .lines()
        .filter_map(|call| call.split(' ').next().map(str::to_owned))
        .collect();
    assert_eq!(verbs, ["create", "attach"]);
    assert!(!calls()?.contains(&key.passphrase()), "the key is an argument");
    assert_eq!(
        fs::read_to_string(node.join(IMAGE))?,
        key.passphrase(),
        "no line's end"
    );
    vault.close()?;
    assert!(
        calls()?
            .lines()
            .last()
            .is_some_and(|call| call.starts_with("detach -force"))
    );

    assert!(!vault.begin(), "a key that comes afterwards opens it no more");
    vault.open(&key);
    assert_eq!(vault.state(), State::Ended);
    assert!(!is_attached(&node.join("models")));

    let other = Vault::with(&node, Some(program), is_attached);
    assert!(other.begin());
    other.open(&StoreKey([8; 32]));
    let failed = other.state();
    assert!(
        matches!(&failed, State::Failed(why) if why.contains("Authentication error")),
        "{failed:?}"
    );
    Ok(())
}

#[test]
fn a_disk_that_the_models_are_linked_to_is_left_alone_and_emptied_into_the_volume() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let (node, disk) = (folder.path().join("node"), folder.path().join("disk"));
    fs::create_dir_all(&node)?;
    fs::create_dir_all(disk.join("org--model"))?;
    fs::write(disk.join("org--model/config.json"), "{}")?;
    std::os::unix::fs::symlink(&disk, node.join("models"))?;
    assert!(!is_mounted(&node.join("models")));
    let program = stand_in(folder.path())?;
    Vault::with(&node, Some(program.clone()), is_attached).close()?;
    assert!(
        !folder.path().join("calls").exists(),
        "nothing is detached that is no volume of ours"
    );
    let vault = Vault::with(&node, Some(program), is_attached);
    assert!(vault.begin());
    vault.open(&StoreKey([7; 32]));
    assert_eq!(vault.state(), State::Open);
    assert!(!fs::symlink_metadata(node.join("models"))?.is_symlink());
    assert_eq!(
        fs::read_to_string(node.join("models/org--model/config.json"))?,
        "{}"
    );
    assert_eq!(fs::read_dir(&disk)?.count(), 0);
    assert!(!node.join(CLEAR).exists());
    Ok(())
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_lost() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let node = folder.path().join("node");
    let program = stand_in(folder.path())?;
    let failure = || {
        let vault = Vault::with(&node, Some(program.clone()), is_attached);
        assert!(vault.begin());
        vault.open(&StoreKey([7; 32]));
        match vault.state() {
            State::Failed(why) => why,
            other => format!("{other:?}"),
        }
    };
    for place in ["models", CLEAR] {
        fs::create_dir_all(node.join(place))?;
        fs::write(node.join(place).join("weights"), place)?;
    }
    // Made and cut off: not taken for an image.
    fs::write(node.join(NEW_IMAGE), "half")?;
    assert!(failure().contains("remove one of them"));
    for place in ["models", CLEAR] {
        assert_eq!(fs::read_to_string(node.join(place).join("weights"))?, place);
    }
    fs::remove_dir_all(node.join(CLEAR))?;
    fs::remove_file(node.join(IMAGE))?;
    fs::write(folder.path().join("attached"), "")?;
    assert!(failure().contains("another volume is mounted"));
    Ok(())
}

#[test]
fn a_stop_does_not_wait_for_what_is_brought_in() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let node = folder.path().join("node");
    fs::create_dir_all(node.join(CLEAR))?;
    fs::create_dir_all(node.join("models"))?;
    fs::write(node.join(CLEAR).join("weights"), "weights")?;
    let vault = Vault::with(&node, Some(stand_in(folder.path())?), is_attached);
    vault.close()?;
    assert!(vault.bring_in(&vault.clear(), &vault.models()).is_err());
    assert_eq!(
        fs::read_to_string(vault.clear().join("weights"))?,
        "weights",
        "it goes on with the next start"
    );
    Ok(())
}

#[test]
fn without_encrypted_volumes_the_store_stays_where_it_is() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let vault = Vault::with(folder.path(), None, is_mounted);
    assert!(vault.begin());
    vault.open(&StoreKey([7; 32]));
    assert_eq!((vault.state(), vault.disk()), (State::Open, None));
    vault.close()?;
    assert_eq!(fs::read_dir(folder.path())?.count(), 0);
    Ok(())
}
