//! The texts as which a secret may stand in a log: as it is, and escaped or encoded.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::terminal;
use crate::secret::Secret;

/// The shortest text that is masked, in bytes. Masking shorter ones would make logs unreadable and protect no secret.
pub(super) const SECRET_MIN: usize = 4;

/// What percent-encoders leave as it is besides letters, digits and `-._` (RFC 3986; form encoding; JavaScript's
/// `encodeURIComponent` and `encodeURI`; Python's `quote`).
const KEPT: [&str; 5] = ["~", "*", "~!*'()", "~!*'();/?:@&=+$,#", "~/"];

/// One form of a secret.
#[derive(PartialEq, Eq)]
pub(super) struct Form {
    pub(super) text: Secret,
    /// Whether the character of Base64 before the text also has some bits of the secret.
    pub(super) bits_before: bool,
    /// Whether the character of Base64 behind the text also has some bits of the secret.
    pub(super) bits_behind: bool,
}

/// All forms of a value: of the whole and of each of its lines, because a log breaks it there. Each stands in the list
/// once.
pub(super) fn forms(value: &str) -> Vec<Form> {
    let mut parts = vec![value, value.trim()];
    if value.trim().contains('\n') {
        parts.extend(value.lines().map(str::trim));
    }
    parts.sort_unstable();
    parts.dedup();
    let mut forms = Vec::new();
    for part in parts.into_iter().filter(|part| part.trim().len() >= SECRET_MIN) {
        forms.push(whole(part.to_owned()));
        json(part, &mut forms);
        percent(part, &mut forms);
        base64(part, &mut forms);
    }
    for form in &mut forms {
        // The log is searched without its control characters, so the forms must be without them as well.
        if form.text.expose().contains(char::is_control) {
            form.text = Secret::new(terminal::plain(form.text.expose(), &[], "").into_owned());
        }
    }
    forms.retain(|form| form.text.expose().len() >= SECRET_MIN);
    forms.sort_unstable_by(|a, b| a.text.expose().cmp(b.text.expose()).then(a.edges().cmp(&b.edges())));
    forms.dedup();
    forms
}

impl Form {
    fn edges(&self) -> (bool, bool) {
        (self.bits_before, self.bits_behind)
    }
}

fn whole(text: String) -> Form {
    Form { text: Secret::new(text), bits_before: false, bits_behind: false }
}

/// What Go escapes in JSON besides what must be, because it has a meaning in HTML.
const ESCAPED_BY_GO: &[char] = &['<', '>', '&'];
/// The same for .NET.
const ESCAPED_BY_NET: &[char] = &['<', '>', '&', '\'', '"', '+', '`'];

/// How a serialiser writes what JSON leaves open.
#[derive(Debug, Clone, Copy)]
struct JsonStyle {
    /// Whether everything but ASCII is escaped.
    ascii: bool,
    /// Whether `/` is escaped, as PHP does.
    slash: bool,
    /// The characters that are escaped although they need not be.
    html: &'static [char],
    /// Whether escapes have capital digits.
    upper: bool,
}

/// The choices to try: both when they make a difference.
fn either(differs: bool) -> &'static [bool] {
    if differs { &[false, true] } else { &[false] }
}

/// Adds the value as it stands in a JSON string, in the styles of common serialisers. Styles that make no difference to
/// this value are left out, because most values look alike in all of them.
fn json(value: &str, forms: &mut Vec<Form>) {
    let html: &[_] = if value.contains(ESCAPED_BY_NET) { &[&[], ESCAPED_BY_GO, ESCAPED_BY_NET] } else { &[&[]] };
    for &html in html {
        for &ascii in either(value.contains(|c| c > '~')) {
            for &slash in either(value.contains('/')) {
                for &upper in either(ascii || !html.is_empty() || value.contains(char::is_control)) {
                    forms.push(whole(in_json(value, JsonStyle { ascii, slash, html, upper })));
                }
            }
        }
    }
}

fn in_json(value: &str, style: JsonStyle) -> String {
    // Long enough for six characters per byte, so that it does not move and leave a copy behind.
    let mut text = String::with_capacity(value.len() * 6);
    for c in value.chars() {
        let escaped = match c {
            c if style.html.contains(&c) => None,
            '"' => Some('"'),
            '\\' => Some('\\'),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            '\u{8}' => Some('b'),
            '\u{c}' => Some('f'),
            '/' if style.slash => Some('/'),
            ' '..='~' => {
                text.push(c);
                continue;
            }
            '\u{7f}'.. if !style.ascii => {
                text.push(c);
                continue;
            }
            _ => None,
        };
        match escaped {
            Some(letter) => text.extend(['\\', letter]),
            None => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    text.push_str("\\u");
                    let digits = [12, 8, 4, 0].map(|shift| digit((*unit >> shift) & 0xf, style.upper));
                    text.extend(digits);
                }
            }
        }
    }
    text
}

fn digit(value: u16, upper: bool) -> char {
    let digit = char::from_digit(u32::from(value), 16).unwrap_or_default();
    if upper { digit.to_ascii_uppercase() } else { digit }
}

/// Adds the value as it stands in a URL or in the body of a form. Encoders that agree on all characters of this value
/// make one form.
fn percent(value: &str, forms: &mut Vec<Form>) {
    if value.bytes().all(is_plain_in_url) {
        return;
    }
    let mut tried = BTreeSet::new();
    for kept in KEPT {
        let differences: String = KEPT.concat().chars().filter(|c| kept.contains(*c) && value.contains(*c)).collect();
        if !tried.insert(differences) {
            continue;
        }
        for &plus in either(value.contains(' ')) {
            forms.extend([false, true].map(|upper| whole(in_url(value, kept, plus, upper))));
        }
    }
}

/// `kept` are the characters that are left as they are besides the plain ones. `plus` says whether a space becomes `+`.
fn in_url(value: &str, kept: &str, plus: bool, upper: bool) -> String {
    // Three characters per byte: see `in_json`.
    let mut text = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        match char::from(byte) {
            ' ' if plus => text.push('+'),
            c if is_plain_in_url(byte) || kept.contains(c) => text.push(c),
            _ => {
                text.push('%');
                text.extend([byte >> 4, byte & 0xf].map(|half| digit(u16::from(half), upper)));
            }
        }
    }
    text
}

fn is_plain_in_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

/// Adds the value as it stands in Base64, by itself or anywhere in a longer text. There it begins at one of three places
/// in a group of three bytes. Characters that it shares with its neighbours are not part of the form.
fn base64(value: &str, forms: &mut Vec<Form>) {
    for before in 0..3_usize {
        let mut bytes = Zeroizing::new(Vec::with_capacity(before + value.len()));
        bytes.resize(before, 0);
        bytes.extend_from_slice(value.as_bytes());
        let bits = bytes.len() * 8;
        let range = (before * 8).div_ceil(6)..bits / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let mut encoded = Zeroizing::new(String::with_capacity(bits / 6 + 4));
            engine.encode_string(bytes.as_slice(), &mut encoded);
            let text = Secret::new(encoded.get(range.clone()).unwrap_or_default().to_owned());
            forms.push(Form { text, bits_before: before != 0, bits_behind: bits % 6 != 0 });
        }
    }
}

/// Whether a character belongs to Base64, or to its variant for URLs.
pub(super) fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}
