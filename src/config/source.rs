//! Collects the texts of the variables from the daemon's YAML files and the environment, and resolves `_FILE` forms and
//! indexed lists. Reads files, but decides nothing about values.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::variables::{
    Kind, LANE_VARIABLES, LaneTexts, PROCESS_VARIABLES, ProcessTexts, Variable, declared, is_ignored, names,
    split_prefix,
};
use super::{Notice, Problem};
use crate::model::PlatformKind;

/// How many characters of a name under `XTM__` may be wrong for it to count as mistyped.
const MISTYPED_CHARACTERS: usize = 2;

/// The texts of variables, by name in upper case.
type Texts = BTreeMap<String, String>;

/// The texts of all layers, with the problems and notices from reading them.
pub(super) struct Source {
    texts: Texts,
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<Notice>,
}

impl Source {
    /// Reads all layers: `files` in order, of which later ones win, and then `environment`, which wins over all except
    /// where it is empty. Files that hold secrets are read only when the secret is asked for, because nobody needs those
    /// of a platform without a lane.
    pub(super) fn read(files: &[PathBuf], environment: impl Iterator<Item = (String, String)>) -> Self {
        let mut problems = Vec::new();
        let mut texts = Texts::new();
        for file in files {
            match read_yaml(file) {
                Ok(layer) => texts.extend(layer),
                Err(why) => problems.push(Problem::new("--config", why, "name a readable YAML file")),
            }
        }
        let (empty, mut environment): (Texts, Texts) =
            in_upper_case(environment).into_iter().partition(|(_, text)| text.trim().is_empty());
        for given in [&mut texts, &mut environment] {
            join_indexed(given);
        }
        overlay(&mut texts, environment);
        // Their names are judged like all others.
        for (name, text) in empty.into_iter().filter(|(name, _)| indexed(name).is_none()) {
            texts.entry(name).or_insert(text);
        }
        let mut notices = judge_names(&texts, files.is_empty());
        notices.extend(files.is_empty().then(|| files_of_the_daemon(&texts)).flatten());
        Self { texts, problems, notices }
    }

    pub(super) fn process(&mut self) -> ProcessTexts {
        self.resolve(PROCESS_VARIABLES, None)
    }

    pub(super) fn lane(&mut self, platform: PlatformKind) -> LaneTexts {
        self.resolve(LANE_VARIABLES, Some(platform))
    }

    /// The text of the variable that enables a platform.
    pub(super) fn enable(&self, platform: PlatformKind) -> Option<&str> {
        let variable = LANE_VARIABLES.iter().find(|variable| variable.field == "enable")?;
        self.given(&variable.name(Some(platform))).or_else(|| variable.default(Some(platform)))
    }

    /// The names of the variables that are set and begin with `prefix`.
    pub(super) fn names_under(&self, prefix: &str) -> Vec<&str> {
        let names = self.texts.keys().map(String::as_str).filter(|name| name.starts_with(prefix));
        names.filter(|name| self.given(name).is_some()).collect()
    }

    /// The text of a variable. `None` when it is not set or empty.
    fn given(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str).filter(|text| !text.trim().is_empty())
    }

    /// The texts of `variables`, which are those of the process or of `platform`, with defaults and with secrets from
    /// files.
    fn resolve<T: DeserializeOwned + Default>(&mut self, variables: &[Variable], platform: Option<PlatformKind>) -> T {
        let mut resolved = Texts::new();
        for variable in variables.iter().filter(|variable| variable.serves(platform)) {
            let name = variable.name(platform);
            let from_file = if variable.kind == Kind::Secret { self.secret_in_file(&name) } else { None };
            let text = from_file.or_else(|| self.given(&name).map(str::to_owned));
            if let Some(text) = text.or_else(|| variable.default(platform).map(str::to_owned)) {
                resolved.insert(variable.field.to_owned(), text);
            }
        }
        envy::from_iter(resolved).unwrap_or_else(|error| {
            self.problems.push(Problem::new("environment", error.to_string(), "mend or unset that variable"));
            T::default()
        })
    }

    /// The content of the file that the `_FILE` form of a secret names. `None` when there is no such form, or the file
    /// cannot be read or is empty.
    fn secret_in_file(&mut self, name: &str) -> Option<String> {
        let file_name = format!("{name}_FILE");
        let path = self.given(&file_name)?.to_owned();
        if self.given(name).is_some() {
            self.problems.push(Problem::new(&file_name, format!("{name} is set as well"), "keep one of the two"));
            return None;
        }
        match read_secret(Path::new(&path), &file_name, &mut self.notices) {
            Ok(text) if text.trim().is_empty() => {
                self.notices.push(Notice::warning(format!("{file_name}: {path} is empty and counts as not set")));
                None
            }
            Ok(text) => Some(text),
            Err(error) => {
                self.problems.push(unreadable_secret(&file_name, &path, &error));
                None
            }
        }
    }
}

/// The variables of the environment that are meant for this program, with their names in upper case. Of spellings that
/// differ in case alone the one with capitals first wins, such as `HTTP_PROXY` over `http_proxy`, provided that it is not
/// empty.
fn in_upper_case(environment: impl Iterator<Item = (String, String)>) -> Texts {
    let named = environment.map(|(name, text)| (name.to_ascii_uppercase(), name, text));
    let mut named: Vec<_> = named.filter(|(upper, ..)| is_ours(upper)).collect();
    // Of equal keys the last one stays in the map, and capitals come first in ASCII.
    named.sort_by(|(_, a, a_text), (_, b, b_text)| (!a_text.trim().is_empty(), b).cmp(&(!b_text.trim().is_empty(), a)));
    named.into_iter().map(|(upper, _, text)| (upper, text)).collect()
}

/// The warning that the daemon would have read files of which this program was not told.
fn files_of_the_daemon(texts: &Texts) -> Option<Notice> {
    let environment = texts.get("COMPOSER_ENV").map(|text| text.trim()).filter(|text| !text.is_empty())?;
    let [base, overlaid] = ["default", environment].map(|name| format!("config/{name}.yaml"));
    Some(Notice::warning(format!(
        "COMPOSER_ENV={environment}: no file is read for it, where the daemon reads {base} and {overlaid}; \
         add --config {base} --config {overlaid}, or unset it"
    )))
}

/// Lays the environment over the files. A secret in the environment also wins over its other form in a file.
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

/// Whether a variable of the environment is meant for this program. OpenCTI has settings of its own under `XTM__`, so
/// an unknown name there counts only when it looks like a mistyped one.
fn is_ours(name: &str) -> bool {
    name.starts_with("MANAGER__")
        || split_prefix(name).is_some()
        || declared(name).is_some()
        || name.strip_suffix("_FILE").is_some_and(|base| declared(base).is_some())
        || (name.starts_with("XTM__")
            && names().any(|known| strsim::damerau_levenshtein(name, &known) <= MISTYPED_CHARACTERS))
}

fn is_secret(name: &str) -> bool {
    declared(name).is_some_and(|variable| variable.kind == Kind::Secret)
}

fn read_yaml(file: &Path) -> Result<Texts, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    // The library's message would quote the file, which holds secrets.
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

/// Turns `{opencti: {url: x}}` into `OPENCTI__URL=x`. The value of a declared variable is kept whole, as JSON.
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

/// Joins `NAME__0`, `NAME__1` and so on to a JSON list in `NAME`, as the daemon's configuration library does.
fn join_indexed(texts: &mut Texts) {
    let mut lists: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    texts.retain(|name, text| match indexed(name) {
        Some((base, index)) => {
            lists.entry(base.to_owned()).or_default().insert(index, text.clone());
            false
        }
        None => true,
    });
    for (name, items) in lists {
        let list: Vec<String> = items.into_values().collect();
        texts.entry(name).or_insert_with(|| Value::from(list).to_string());
    }
}

/// The list that `NAME__2` belongs to, and its place in there. `None` for any other name.
fn indexed(name: &str) -> Option<(&str, usize)> {
    let (base, index) = name.rsplit_once("__")?;
    declared(base)?;
    Some((base, index.parse().ok()?))
}

/// The problem of a secret's file that cannot be read. A text that does not look like a path may be the secret itself
/// and is not shown.
pub(super) fn unreadable_secret(variable: &str, path: &str, error: &std::io::Error) -> Problem {
    let path = path.trim();
    let is_path = ["/", "./", "../", "~/"].iter().any(|start| path.starts_with(start));
    if is_path && !path.contains(['\n', '\\']) {
        return Problem::new(variable, format!("cannot read {path}: {error}"), "name a readable file");
    }
    let what = "cannot read it; its value is not shown, for it may be the secret itself".to_owned();
    Problem::new(variable, what, "put the secret into a file, and the file's absolute path here")
}

/// Reads a file that holds a secret, without the line break at its end. Adds a notice when everybody can read the file.
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

/// Makes notices about the names of variables, whichever platform is enabled. An unknown name gets a warning with the
/// nearest known name. It is no problem, because the daemon ignores unknown names, so its users may have some. A known
/// name without use gets a notice.
fn judge_names(texts: &Texts, without_files: bool) -> Vec<Notice> {
    let mut notices = Vec::new();
    let mut meaningless = Vec::new();
    for (name, text) in texts {
        let Some(variable) = declared(name).or_else(|| secret_of_file(name)) else {
            if !is_ignored(name) {
                notices.push(Notice::warning(format!("{name} is no variable that is known: {}", nearest(name))));
            }
            continue;
        };
        let has_own_warning = without_files && variable.field == "composer_env";
        if variable.kind == Kind::Meaningless && !has_own_warning && !text.trim().is_empty() {
            meaningless.push(name.as_str());
        }
        if let (Some(only), Some((platform, _))) = (variable.only, split_prefix(name))
            && only != platform
            && !text.trim().is_empty()
        {
            let message = format!("{name} is ignored: {} alone has a use for it", only.title());
            notices.push(Notice::info(message));
        }
    }
    if !meaningless.is_empty() {
        let names = meaningless.join(", ");
        notices.push(Notice::info(format!("without meaning for a single pass, and ignored: {names}")));
    }
    notices
}

/// The secret of which this name is the `_FILE` form. `None` for any other name.
fn secret_of_file(name: &str) -> Option<&'static Variable> {
    declared(name.strip_suffix("_FILE")?).filter(|variable| variable.kind == Kind::Secret)
}

fn nearest(name: &str) -> String {
    let best = names().map(|known| (strsim::damerau_levenshtein(name, &known), known)).min();
    match best {
        Some((distance, known)) if distance <= name.len() / 3 => format!("did you mean {known}?"),
        _ => "unset it; the README lists all variables".to_owned(),
    }
}
