//! Keeps the token for the chat of XTM One where the operator wants it, and writes it only when it changed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

use super::ChatTokenPlace;
use crate::log_lines;
use crate::model::short_hash;
use crate::orchestrator::{Orchestrator, OrchestratorError};
use crate::secret::Secret;
use crate::stored_memory::StoredMemory;

/// The key in the Secret.
const KEY: &str = "chat_web_token";
/// Hexadecimal digits of the fingerprint.
const FINGERPRINT: usize = 12;

/// What became of the token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// In words, for the report.
    pub(super) what: &'static str,
    /// What to remember of it.
    pub(super) fingerprint: String,
    /// What the operator should know.
    pub(super) notice: Option<String>,
}

/// Keeps the token. `remembered` is the fingerprint of the last one. Fails with what cannot be done and why.
pub(super) async fn keep<O: Orchestrator>(
    place: &ChatTokenPlace,
    token: Secret,
    remembered: Option<&str>,
    store: &StoredMemory<'_, O>,
) -> Result<Kept, String> {
    let fingerprint = short_hash(&Zeroizing::new(format!("{place:?}\n{}", token.expose())), FINGERPRINT);
    let kept = |what, notice| Kept { what, fingerprint: fingerprint.clone(), notice };
    match place {
        _ if remembered == Some(fingerprint.as_str()) && !matches!(place, ChatTokenPlace::File(_)) => {
            let nowhere = *place == ChatTokenPlace::Nowhere;
            Ok(kept(if nowhere { "kept nowhere" } else { "unchanged" }, None))
        }
        ChatTokenPlace::Nowhere => {
            let notice = "XTM One gave a new token for its chat, which is kept nowhere: set XTM__CHAT_WEB_TOKEN_SECRET or \
                          XTM__CHAT_WEB_TOKEN_FILE to keep it";
            Ok(kept("kept nowhere", Some(notice.to_owned())))
        }
        ChatTokenPlace::Secret(name) => {
            let (orchestrator, permit) = (store.orchestrator(), store.permit());
            let written = orchestrator.write_secret(permit, name, KEY, &token).await;
            // What refuses the Secret may quote it.
            let why = |error: OrchestratorError| log_lines::masked(&error.to_string(), [&token]);
            written.map(|()| kept("written", None)).map_err(why)
        }
        ChatTokenPlace::File(path) => {
            let shown = path.display().to_string();
            let path = path.clone();
            let writing = tokio::task::spawn_blocking(move || write_if_changed(&path, &token));
            let written = writing.await.map_err(std::io::Error::other).and_then(|written| written);
            let written =
                written.map_err(|error| format!("the token for the chat cannot be written to {shown}: {error}"))?;
            Ok(kept(if written { "written" } else { "unchanged" }, None))
        }
    }
}

/// Writes the file when it has another content. The new one takes the place of the old one at once, so that nobody reads
/// half a token, and only its owner may read it.
fn write_if_changed(path: &Path, token: &Secret) -> std::io::Result<bool> {
    // The lower six bits are the rights of all others.
    let private = fs::metadata(path).is_ok_and(|file| file.permissions().mode().trailing_zeros() >= 6);
    let kept = fs::read(path).map(Zeroizing::new);
    if private && kept.is_ok_and(|content| *content == token.expose().as_bytes()) {
        return Ok(false);
    }
    let mut next = path.as_os_str().to_owned();
    next.push(".xtm-next");
    let next = Path::new(&next);
    // One that an earlier pass left when it was killed. The lock keeps others from writing it now.
    match fs::remove_file(next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(next)?;
        file.write_all(token.expose().as_bytes())?;
        file.sync_all()?;
        fs::rename(next, path)
    })();
    if written.is_err() {
        drop(fs::remove_file(next));
    }
    written?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_private_and_is_written_only_when_the_token_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let write = |token: &str| write_if_changed(&path, &Secret::new(token.to_owned())).unwrap();
        fs::write(folder.path().join("token.xtm-next"), "left by a pass that was killed").unwrap();
        assert!(write("one"));
        assert!(!write("one"), "nothing has changed");
        assert!(write("two"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(write("two"), "others could read it");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
