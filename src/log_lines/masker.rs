//! Finds secrets in text, in all their forms, with one scan for all of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

use super::forms::{Form, SECRET_MIN, forms, is_base64};
use super::{MASK, terminal};
use crate::secret::Secret;

/// How many bytes of each form the automaton knows. The rest is compared where these are found: that keeps the automaton
/// small and quick to make, and of a secret no more than this much of each form stays in memory that is not wiped.
const BEGINNING: usize = 8;

/// Masks the secrets that it was made of. It has no `Debug`, because that would show their beginnings.
pub(super) struct Masker {
    /// Finds the beginnings of all forms. `None` when there are none, or when they are too many for an automaton.
    beginnings: Option<AhoCorasick>,
    /// The forms with each of the beginnings.
    forms: BTreeMap<Vec<u8>, Vec<Form>>,
    /// The length of the longest form, in bytes.
    longest: usize,
}

impl Masker {
    pub(super) fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut by_beginning: BTreeMap<Vec<u8>, Vec<Form>> = BTreeMap::new();
        for form in secrets.into_iter().flat_map(|secret| forms(secret.expose())) {
            by_beginning.entry(form.text.expose().bytes().take(BEGINNING).collect()).or_default().push(form);
        }
        let longest = by_beginning.values().flatten().map(|form| form.text.expose().len()).max().unwrap_or_default();
        let mut builder = AhoCorasick::builder();
        builder.match_kind(MatchKind::LeftmostFirst).kind(Some(AhoCorasickKind::ContiguousNFA));
        let beginnings = if by_beginning.is_empty() { None } else { builder.build(by_beginning.keys()).ok() };
        Self { beginnings, forms: by_beginning, longest }
    }

    /// A line as it may be shown: printable and masked. `whole` says whether its end is there as well; otherwise as
    /// much is dropped at its end as the beginning of a secret may have.
    pub(super) fn printable(&self, line: &str, whole: bool) -> String {
        // An escape sequence may take the first characters of a secret along, so that the rest would not be found
        // afterwards. And one within a secret hides it before.
        let hidden = if terminal::has_escapes(line) { self.found(line) } else { Vec::new() };
        let plain = terminal::plain(line, &hidden, MASK);
        let end = if whole { plain.len() } else { plain.len().saturating_sub(self.longest) };
        self.masked(plain, end)
    }

    /// The text up to `end`, with the secrets masked that begin in it.
    fn masked(&self, text: Cow<'_, str>, end: usize) -> String {
        let found = self.found(&text);
        if found.is_empty() && end == text.len() {
            return text.into_owned();
        }
        let end = text.floor_char_boundary(end);
        let mut masked = String::with_capacity(text.len());
        let mut at = 0;
        for range in found.into_iter().take_while(|range| range.start < end) {
            masked.push_str(text.get(at..range.start).unwrap_or_default());
            masked.push_str(MASK);
            at = range.end;
        }
        masked.push_str(text.get(at..end).unwrap_or_default());
        masked
    }

    /// Where the text has secrets. The ranges are in order and apart from each other, whereas the secrets themselves may
    /// overlap.
    fn found(&self, text: &str) -> Vec<Range<usize>> {
        if self.forms.is_empty() {
            return Vec::new();
        }
        // What cannot be searched is masked as a whole.
        let everything = || std::iter::once(0..text.len()).collect();
        let Some(beginnings) = &self.beginnings else { return everything() };
        let mut found = Vec::new();
        let mut from = 0;
        loop {
            match beginnings.try_find(Input::new(text).range(from..)) {
                Ok(Some(place)) => {
                    found.extend(self.forms_at(text, place.start()));
                    // Another secret may overlap with this one.
                    from = place.start() + 1;
                }
                Ok(None) => return joined(found),
                Err(_) => return everything(),
            }
        }
    }

    /// The range to mask of each form that stands at `start`.
    fn forms_at(&self, text: &str, start: usize) -> impl Iterator<Item = Range<usize>> {
        let beginnings = (SECRET_MIN..=BEGINNING).filter_map(move |length| text.as_bytes().get(start..start + length));
        let forms = beginnings.filter_map(|beginning| self.forms.get(beginning)).flatten();
        forms.filter_map(move |form| range_of(form, text, start))
    }
}

/// The range to mask when the form stands at `start`.
fn range_of(form: &Form, text: &str, start: usize) -> Option<Range<usize>> {
    if !text.get(start..)?.starts_with(form.text.expose()) {
        return None;
    }
    let end = start + form.text.expose().len();
    let shares = |at: usize| text.as_bytes().get(at).copied().is_some_and(is_base64);
    let before = form.bits_before && start.checked_sub(1).is_some_and(shares);
    let behind = form.bits_behind && shares(end);
    Some(start - usize::from(before)..end + usize::from(behind))
}

/// The ranges in order. Those that overlap or touch become one.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::{MASK, Masker, forms, range_of};
    use crate::secret::Secret;

    fn masker(secrets: &[&str]) -> Masker {
        let secrets: Vec<Secret> = secrets.iter().map(|secret| Secret::new((*secret).to_owned())).collect();
        Masker::new(&secrets)
    }

    fn shown(secrets: &[&str], line: &str) -> String {
        masker(secrets).printable(line, true)
    }

    fn escaped(secret: &str, unit: impl Fn(u16) -> String, keep: impl Fn(char) -> bool) -> String {
        let one = |c: char| {
            if keep(c) { c.to_string() } else { c.encode_utf16(&mut [0; 2]).iter().map(|code| unit(*code)).collect() }
        };
        secret.chars().map(one).collect()
    }

    fn percent(secret: &str, kept: &str, upper: bool) -> String {
        let one = |byte: u8| match char::from(byte) {
            c if c.is_ascii_alphanumeric() || kept.contains(c) => c.to_string(),
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        };
        secret.bytes().map(one).collect()
    }

    /// A secret as programs write it, each by another rule than the code under test has.
    fn encodings(secret: &str) -> Vec<String> {
        let json = serde_json::to_string(secret).unwrap();
        let json = json.strip_prefix('"').unwrap().strip_suffix('"').unwrap().to_owned();
        let lower = |unit: u16| format!("\\u{unit:04x}");
        let ascii = escaped(&json, lower, |c| c.is_ascii());
        let net = |c: char| c.is_ascii_alphanumeric() || "-._~ /%*\\!=:@".contains(c);
        let net = escaped(secret, |unit| format!("\\u{unit:04X}"), net);
        let net = net.replace('\\', "\\\\").replace("\\\\u", "\\u");
        let mut all = vec![json.replace('/', "\\/"), ascii.replace('/', "\\/"), json, ascii];
        if !secret.contains(['\\', '\t', '\n']) {
            all.push(net);
        }
        for upper in [false, true] {
            let form = percent(secret, "-._* ", upper).replace(' ', "+");
            all.extend([percent(secret, "-._~", upper), percent(secret, "-._~/", upper), form]);
            all.push(percent(secret, "-._~!*'()", upper));
        }
        if !secret.contains('\n') {
            all.push(secret.to_owned());
        }
        all
    }

    fn secret() -> impl Strategy<Value = String> {
        // The first and the last character are no space, because values are trimmed.
        "[a-zA-Z0-9\"\\\\é😀]([a-zA-Z0-9\"\\\\/+%<&'é😀 \t\n~*]{2,40})[a-zA-Z0-9\"\\\\é😀]"
    }

    proptest! {
        // Shows what README says under "What a pass does": "**What is masked** is a value as it is, escaped in JSON,
        // percent-encoded".
        #[test]
        fn a_secret_is_masked_however_it_is_encoded_and_nothing_around_it_is(secret in secret()) {
            let masker = masker(&[&secret]);
            for text in encodings(&secret) {
                let shown = masker.printable(&format!("a ({text}) b"), true);
                prop_assert_eq!(shown, format!("a ({MASK}) b"), "{}", text);
            }
        }

        // Shows what README says under "What a pass does": "and in Base64, by itself or within a longer text such as
        // `user:password`".
        #[test]
        fn a_secret_within_base64_is_masked_to_its_last_bit(
            before in "[!-~]{0,7}", secret in secret(), behind in "[ -~]{0,7}",
        ) {
            let (masker, whole) = (masker(&[&secret]), format!("{before}{secret}{behind}"));
            for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
                let text = engine.encode(&whole);
                let first = before.len() * 8 / 6;
                let end = ((before.len() + secret.len()) * 8).div_ceil(6);
                let wanted = format!("Basic {}{MASK}{}.", &text[..first], &text[end..]);
                let shown = masker.printable(&format!("Basic {text}."), true);
                // A secret of a few characters may be there by chance a second time.
                prop_assert!(shown == wanted || secret.len() < 8, "{shown} instead of {wanted}");
                prop_assert!(!shown.contains(&text[first..end]));
            }
        }

        #[test]
        fn one_scan_finds_what_a_search_for_each_form_of_each_secret_finds(
            secrets in prop::collection::vec("[ab/\n]{1,14}", 0..6), text in "[ab/%2FYWJiI\\\\n]{0,60}", plant in any::<prop::sample::Index>(),
        ) {
            let secrets: Vec<&str> = secrets.iter().map(String::as_str).collect();
            let all: Vec<_> = secrets.iter().flat_map(|secret| forms(secret)).collect();
            let planted = if all.is_empty() { "" } else { all[plant.index(all.len())].text.expose() };
            let text = format!("{text}{planted}{text}");
            let mut wanted = vec![false; text.len()];
            for form in &all {
                for range in (0..text.len()).filter_map(|start| range_of(form, &text, start)) {
                    wanted[range].fill(true);
                }
            }
            let mut found = vec![false; text.len()];
            for range in masker(&secrets).found(&text) {
                found[range].fill(true);
            }
            prop_assert_eq!(found, wanted, "{}", text);
        }

        // Shows what README says under "What a pass does": "Terminal sequences and control characters are removed
        // before".
        #[test]
        fn an_escape_sequence_anywhere_in_a_secret_hides_it_not(
            at in 0..12_usize,
            sequence in prop::sample::select(vec!["\x1b[0m", "\x1b]0;title\x07", "\x1b]0;title\x1b\\", "\x1b(B", "\0", "\x1bPq\x1b\\"]),
        ) {
            let mut line = "s3cret-value".to_owned();
            line.insert_str(at, sequence);
            prop_assert_eq!(shown(&["s3cret-value"], &format!("a {line} b")), format!("a {MASK} b"));
        }
    }

    #[test]
    fn a_broken_escape_sequence_before_a_secret_leaves_nothing_of_it() {
        for introducer in
            ["\x1b", "\x1b[", "\x1b[1;", "\x1b(", "\x1b]", "\x1b]0;", "\x1bP", "\u{9b}", "\u{9d}", "\x1b\x1b["]
        {
            let shown = shown(&["s3cret-value"], &format!("a {introducer}s3cret-value b"));
            assert!(shown.starts_with("a ") && shown.ends_with(&format!("{MASK} b")), "{introducer:?}: {shown}");
        }
    }

    // Shows what README says under "What a pass does": "of a value with several lines also each line".
    #[test]
    fn a_key_of_many_lines_is_masked_as_a_whole_and_line_by_line_and_short_lines_are_not() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\r\nabc\n-----END KEY-----\n";
        assert_eq!(shown(&[key], "key MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"), format!("key {MASK}"));
        assert_eq!(shown(&[key], "abc is too short"), "abc is too short");
        let line = format!("{{\"key\": {}}}", serde_json::to_string(key).unwrap());
        assert_eq!(shown(&[key], &line), format!("{{\"key\": \"{MASK}\"}}"));
        for whole in [key, key.trim()] {
            assert_eq!(shown(&[key], &STANDARD.encode(whole)).trim_end_matches('='), MASK);
        }
        let nested = percent("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "", true);
        assert_eq!(shown(&[key], &nested), MASK);
    }

    // Shows what README says under "What a pass does": "Values and lines of fewer than 4 bytes are not masked".
    #[test]
    fn secrets_that_overlap_are_masked_together() {
        assert_eq!(shown(&["abcd-efgh", "efgh-ijkl"], "<abcd-efgh-ijkl>"), format!("<{MASK}>"));
        assert_eq!(
            shown(&["efgh", "abcd-efgh-ijkl"], "<abcd-efgh-ijkl> <efgh-ijkl>"),
            format!("<{MASK}> <{MASK}-ijkl>")
        );
        assert_eq!(shown(&["masked"], "masked"), MASK);
        for (secret, line) in [("abc", "abc"), ("      ", "a      b"), ("  ab  ", "<  ab  >"), ("", "line")] {
            assert_eq!(shown(&[secret], line), line, "too short");
        }
        assert_eq!(shown(&["tab\tinside"], "<tab\tinside>"), format!("<{MASK}>"));
    }
}
