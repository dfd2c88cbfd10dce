//! Makes a log readable outside a terminal: no escape sequences, no control characters.

use std::borrow::Cow;
use std::ops::Range;

/// The end of a string sequence as one character (ECMA-48, ST). A log that is not in UTF-8 has it as one byte.
const STRING_END: char = '\u{9c}';

/// Decodes a line. Bytes that are not UTF-8 are replaced, except for the one that ends a string sequence.
pub(super) fn decode(line: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(line) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        text.push_str(chunk.valid());
        match chunk.invalid() {
            [] => {}
            [0x9c] => text.push(STRING_END),
            _ => text.push(char::REPLACEMENT_CHARACTER),
        }
    }
    Cow::Owned(text)
}

/// Whether a line has an escape sequence in it.
pub(super) fn has_escapes(line: &str) -> bool {
    !is_plain(line) && line.contains(|c| matches!(c, '\u{1b}' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}'))
}

/// Removes escape sequences and control characters, and turns tabs into spaces. Of the characters in each of the
/// `hidden` ranges those that would be shown are replaced by `mark`, once for the whole range. The ranges are in order
/// and do not overlap.
pub(super) fn plain<'a>(line: &'a str, hidden: &[Range<usize>], mark: &str) -> Cow<'a, str> {
    if is_plain(line) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len());
    let mut hidden = hidden.iter().peekable();
    let mut marked = None;
    let mut at = 0;
    while let Some(c) = line.get(at..).and_then(|rest| rest.chars().next()) {
        let start = at;
        at += c.len_utf8();
        let c = match c {
            '\u{1b}' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}' => {
                at = escape_end(line, at, c);
                continue;
            }
            '\t' => ' ',
            c if c.is_control() => continue,
            c => c,
        };
        while hidden.next_if(|range| range.end <= start).is_some() {}
        match hidden.peek().filter(|range| range.start <= start) {
            None => shown.push(c),
            Some(range) if marked == Some(range.start) => {}
            Some(range) => {
                marked = Some(range.start);
                shown.push_str(mark);
            }
        }
    }
    Cow::Owned(shown)
}

/// Whether a line has surely no control character. All of those beyond ASCII have 0xc2 as their first byte. It reads
/// the whole line, which is faster than to stop at the first one, as most lines have none.
fn is_plain(line: &str) -> bool {
    line.bytes().fold(0, |found, byte| found | u8::from(matches!(byte, ..b' ' | 0x7f | 0xc2))) == 0
}

/// Where the sequence ends that `introducer` begins, which stands just before `at`. Of a sequence that does not end on
/// its line, or is none, nothing but its introducer counts, so that it takes no text along.
fn escape_end(line: &str, at: usize, introducer: char) -> usize {
    let rest = line.get(at..).unwrap_or_default();
    let length = match introducer {
        '\u{1b}' => match rest.chars().next() {
            Some('[') => return control_end(line, at + 1),
            Some(']' | 'P' | 'X' | '^' | '_') => return string_end(line, at + 1),
            // Others have any number of characters from the first range and end with one from the second.
            _ => {
                let between = rest.find(|c| !(' '..='/').contains(&c)).unwrap_or(rest.len());
                let ends = rest.get(between..).is_some_and(|end| end.starts_with(|c| ('0'..='~').contains(&c)));
                if ends { between + 1 } else { 0 }
            }
        },
        '\u{9b}' => return control_end(line, at),
        _ => return string_end(line, at),
    };
    at + length
}

/// Where a control sequence ends (colours, moves of the cursor): after any number of parameters and one final character.
fn control_end(line: &str, at: usize) -> usize {
    let rest = line.get(at..).unwrap_or_default();
    let parameters = rest.find(|c| !(' '..='?').contains(&c)).unwrap_or(rest.len());
    let ends = rest.get(parameters..).is_some_and(|end| end.starts_with(|c| ('@'..='~').contains(&c)));
    if ends { at + parameters + 1 } else { at }
}

/// Where a string sequence ends (titles, links, commands to the terminal): before BEL, before ST in one character or in two,
/// or before a character that breaks it off. All of these are removed by themselves.
fn string_end(line: &str, at: usize) -> usize {
    let end = line.get(at..).unwrap_or_default().find(['\u{7}', '\u{18}', '\u{1a}', '\u{1b}', STRING_END]);
    end.map_or(at, |end| at + end)
}

#[cfg(test)]
mod tests {
    use super::{decode, plain};

    fn shown(line: &[u8]) -> String {
        plain(&decode(line), &[], "").into_owned()
    }

    #[test]
    fn sequences_of_every_kind_go_and_the_text_around_them_stays() {
        for sequence in [
            "\x1b[0;31m",
            "\x1b[?25l",
            "\x1b[K",
            "\u{9b}1m",
            "\x1b(B",
            "\x1b=",
            "\x1bM",
            "\x1b%G",
            "\x1b]0;title\x07",
            "\x1b]0;title\x1b\\",
            "\x1b]0;title\u{9c}",
            "\u{9d}0;title\u{9c}",
            "\x1b]8;;https://host/?a=1\x1b\\",
            "\x1bPq#0;2\x1b\\",
            "\x1b_application\x1b\\",
            "\x1b^privacy\x1b\\",
            "\x1bXstring\x1b\\",
            "\u{90}data\u{9c}",
            "\x1b]0;title\x18",
            "\x1b]0;title\x1b[0m",
        ] {
            assert_eq!(shown(format!("before {sequence}after").as_bytes()), "before after", "{sequence:?}");
        }
        assert_eq!(shown(b"before \x1b]0;title\x9cafter \xc3\x9c"), "before after \u{dc}", "ST as one byte");
        let link = "\x1b]8;;https://host\x1b\\link\x1b]8;;\x1b\\ after";
        assert_eq!(shown(link.as_bytes()), "link after");
    }

    #[test]
    fn a_sequence_that_does_not_end_on_its_line_takes_no_text_along() {
        for (line, wanted) in [
            ("a \x1b]0;title and more", "a 0;title and more"),
            ("a \x1bPdata", "a data"),
            ("a \x1b[0;31", "a 0;31"),
            ("a \x1b[31é", "a 31é"),
            ("a \x1b(", "a ("),
            ("a \x1bé", "a é"),
            ("a \x1b", "a "),
        ] {
            assert_eq!(shown(line.as_bytes()), wanted, "{line:?}");
        }
    }

    // Shows what README says under "What a pass does": "Terminal sequences and control characters are removed before".
    #[test]
    fn control_characters_go_and_what_is_no_utf8_is_replaced() {
        assert_eq!(shown(b"a\tb\x00\x08c\xffd\xc3(\r"), "a bc\u{fffd}d\u{fffd}(");
    }

    #[test]
    fn hidden_text_is_marked_once_and_only_where_it_would_be_shown() {
        let line = "a \x1b]0;hidden\x07b hid\x1b[1mden c";
        let first = line.find("hidden").unwrap();
        let second = line.find("hid\x1b").unwrap();
        assert_eq!(plain(line, &[first..first + 6, second..second + 10], "*"), "a b * c");
    }
}
