//! Where the variables come from: the environment over the daemon's YAML files, `_FILE` forms and indexed lists resolved.
//! Reads files; decides nothing about values.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::variables::{Kind, OTHER_PREFIXES, Raw, VARIABLES, declared};
use super::{Notice, Problem};

/// Variables by upper-case name.
type Texts = BTreeMap<String, String>;

/// What was read, and what was wrong with it.
pub(super) struct Source {
    pub(super) raw: Raw,
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<Notice>,
}

/// Reads all layers: `files` in order, later ones win, then `environment`, which wins over all.
pub(super) fn read(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Source {
    let mut problems = Vec::new();
    let mut notices = Vec::new();
    let mut texts = Texts::new();
    for file in files {
        match read_yaml(file) {
            Ok(layer) => texts.extend(layer),
            Err(why) => problems.push(Problem::new("--config", why, "name a readable YAML file")),
        }
    }
    let mut environment: Texts =
        environment.map(|(name, text)| (name.to_ascii_uppercase(), text)).filter(|(name, _)| is_ours(name)).collect();
    for given in [&mut texts, &mut environment] {
        join_indexed(given);
    }
    overlay(&mut texts, environment);
    read_secret_files(&mut texts, &mut problems, &mut notices);
    judge_names(&texts, &mut notices);
    let raw = match envy::from_iter::<_, Raw>(texts) {
        Ok(raw) => raw.with_defaults(),
        Err(error) => {
            problems.push(Problem::new("environment", error.to_string(), "mend or unset that variable"));
            Raw::default().with_defaults()
        }
    };
    Source { raw, problems, notices }
}

/// The environment wins, also over the other forms of the same secret in a file.
fn overlay(texts: &mut Texts, environment: Texts) {
    for name in environment.keys() {
        match name.strip_suffix("_FILE") {
            Some(base) if is_secret(base) => texts.remove(base),
            _ => texts.remove(&format!("{name}_FILE")),
        };
        if matches!(name.as_str(), "MANAGER__CREDENTIALS_KEY" | "MANAGER__CREDENTIALS_KEY_FILE") {
            texts.remove("MANAGER__CREDENTIALS_KEY_FILEPATH");
        }
    }
    texts.extend(environment);
}

fn is_ours(name: &str) -> bool {
    name.starts_with("MANAGER__")
        || name.starts_with("OPENCTI__")
        || name.starts_with("OPENAEV__")
        || declared(name).is_some()
        || name.strip_suffix("_FILE").is_some_and(|base| declared(base).is_some())
}

fn is_secret(name: &str) -> bool {
    declared(name).is_some_and(|variable| variable.kind == Kind::Secret)
}

fn read_yaml(file: &Path) -> Result<Texts, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    // The library's words would quote the file, and there are secrets in it.
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| {
        let place = error.location().map(|place| format!(", see line {} column {}", place.line(), place.column()));
        format!("{} is not YAML{}", file.display(), place.unwrap_or_default())
    })?;
    let mut texts = Texts::new();
    match value {
        Value::Null => {}
        Value::Object(_) => flatten("", &value, &mut texts),
        _ => return Err(format!("{} is not a YAML mapping", file.display())),
    }
    Ok(texts)
}

/// `{opencti: {url: x}}` becomes `OPENCTI__URL=x`. What a declared variable holds is kept whole, as JSON.
fn flatten(path: &str, value: &Value, texts: &mut Texts) {
    let text = match value {
        Value::Null => return,
        Value::Object(fields) if declared(path).is_none() => {
            for (key, inner) in fields {
                let joined = if path.is_empty() { key.clone() } else { format!("{path}__{key}") };
                flatten(&joined.to_ascii_uppercase(), inner, texts);
            }
            return;
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    texts.insert(path.to_owned(), text);
}

/// `NAME__0`, `NAME__1` become a JSON list in `NAME`, as the daemon's configuration library reads them.
fn join_indexed(texts: &mut Texts) {
    let mut lists: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    texts.retain(|name, text| {
        let indexed = name.rsplit_once("__").and_then(|(base, index)| Some((base, index.parse::<usize>().ok()?)));
        match indexed {
            Some((base, index)) if declared(base).is_some() => {
                lists.entry(base.to_owned()).or_default().insert(index, text.clone());
                false
            }
            _ => true,
        }
    });
    for (name, items) in lists {
        let list: Vec<String> = items.into_values().collect();
        texts.entry(name).or_insert_with(|| Value::from(list).to_string());
    }
}

fn read_secret_files(texts: &mut Texts, problems: &mut Vec<Problem>, notices: &mut Vec<Notice>) {
    for variable in VARIABLES.iter().filter(|variable| variable.kind == Kind::Secret) {
        let name = variable.name();
        let file_name = format!("{name}_FILE");
        let Some(path) = texts.remove(&file_name).filter(|path| !path.trim().is_empty()) else { continue };
        if texts.get(&name).is_some_and(|text| !text.trim().is_empty()) {
            problems.push(Problem::new(&file_name, format!("{name} is set as well"), "keep one of the two"));
            continue;
        }
        match read_secret(Path::new(&path), &file_name, notices) {
            Ok(text) => {
                texts.insert(name, text);
            }
            Err(error) => problems.push(unreadable_secret(&file_name, &path, &error)),
        }
    }
}

/// What is no path, as far as can be told, is taken for the secret itself and not shown.
pub(super) fn unreadable_secret(variable: &str, path: &str, error: &std::io::Error) -> Problem {
    let path = path.trim();
    let is_path = ["/", "./", "../", "~/"].iter().any(|start| path.starts_with(start));
    if is_path && !path.contains(['\n', '\\']) {
        return Problem::new(variable, format!("cannot read {path}: {error}"), "name a readable file");
    }
    let what = "cannot read it; its value is not shown, for it may be the secret itself".to_owned();
    Problem::new(variable, what, "put the secret into a file, and the file's absolute path here")
}

/// Reads a file that holds a secret, without the line end that editors leave, and notes when everybody may read it.
pub(super) fn read_secret(path: &Path, variable: &str, notices: &mut Vec<Notice>) -> std::io::Result<String> {
    let text = fs::read_to_string(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path)?.permissions().mode();
        if mode & 0o004 != 0 {
            let message = format!("{variable}: everybody on this machine may read {}: chmod 600 it", path.display());
            notices.push(Notice::warning(message));
        }
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Unknown names are reported with the nearest known one, as a warning: the daemon ignores them, and so its users may
/// have some. Known ones without meaning here are noted.
fn judge_names(texts: &Texts, notices: &mut Vec<Notice>) {
    let mut meaningless = Vec::new();
    for name in texts.keys() {
        match declared(name) {
            Some(variable) if variable.kind == Kind::Meaningless => meaningless.push(name.as_str()),
            Some(_) => {}
            None if OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {}
            None => notices.push(Notice::warning(format!("{name} is no variable that is known: {}", nearest(name)))),
        }
    }
    if !meaningless.is_empty() {
        let names = meaningless.join(", ");
        notices.push(Notice::info(format!("without meaning for a single pass, and ignored: {names}")));
    }
}

fn nearest(name: &str) -> String {
    let names = VARIABLES.iter().map(super::variables::Variable::name);
    let best = names.map(|known| (strsim::damerau_levenshtein(name, &known), known)).min();
    match best {
        Some((distance, known)) if distance <= name.len() / 3 => format!("did you mean {known}?"),
        _ => "unset it; the README lists all variables".to_owned(),
    }
}
