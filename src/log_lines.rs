//! Turns an engine's log stream into lines that a platform can show: whole, printable, bounded, without secrets. Pure.

mod forms;
mod masker;
mod terminal;

use std::collections::VecDeque;

use masker::Masker;

use crate::secret::Secret;

/// The longest line that is sent, in characters.
pub const LINE_MAX: usize = 4096;
/// Marks where a line was cut.
pub const CUT_MARK: &str = " … [cut]";
/// Replaces each secret.
pub const MASK: &str = "[masked]";
/// How many bytes of a line are kept until it is complete. They are more than are sent, so that a secret across the cut
/// is found. A line of this length has been cut, and its end is unknown.
const RAW_MAX: usize = LINE_MAX * 8;
/// How many bytes of one log are kept. The newest are kept, and the bound is needed because many logs are read at the
/// same time.
const LOG_MAX: usize = 2 * 1024 * 1024;

/// An output of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or both outputs of a container with a terminal.
    Out,
    /// Standard error.
    Err,
}

/// Joins the pieces of a stream to lines. Keeps the last `tail` lines, and bounds the size of each and of all together.
#[derive(Debug)]
pub struct Assembler {
    tail: usize,
    partial: [Vec<u8>; 2],
    bytes: usize,
    lines: VecDeque<Vec<u8>>,
}

impl Assembler {
    /// An assembler that keeps the last `tail` lines.
    #[must_use]
    pub fn new(tail: usize) -> Self {
        Self { tail, partial: [Vec::new(), Vec::new()], bytes: 0, lines: VecDeque::new() }
    }

    /// Takes one piece. Each of the two streams has its own unfinished line, so that their pieces do not mix.
    pub fn push(&mut self, stream: Stream, mut piece: &[u8]) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = piece.split_at(end);
            self.extend(stream, line);
            let whole = std::mem::take(self.partial(stream));
            self.keep(whole);
            piece = rest.get(1..).unwrap_or_default();
        }
        self.extend(stream, piece);
    }

    /// Returns the lines as the platform may show them, with `secrets` masked.
    #[must_use]
    pub fn finish(mut self, secrets: &[Secret]) -> Vec<String> {
        for partial in std::mem::take(&mut self.partial) {
            if !partial.is_empty() {
                self.keep(partial);
            }
        }
        if self.lines.is_empty() {
            return Vec::new();
        }
        let masker = Masker::new(secrets);
        let shown = |line: &Vec<u8>| cut(&masker.printable(&terminal::decode(line), line.len() < RAW_MAX));
        self.lines.iter().map(shown).collect()
    }

    fn partial(&mut self, stream: Stream) -> &mut Vec<u8> {
        let [out, err] = &mut self.partial;
        match stream {
            Stream::Out => out,
            Stream::Err => err,
        }
    }

    fn extend(&mut self, stream: Stream, piece: &[u8]) {
        let partial = self.partial(stream);
        let room = RAW_MAX.saturating_sub(partial.len()).min(piece.len());
        partial.extend_from_slice(piece.get(..room).unwrap_or_default());
    }

    fn keep(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.tail || self.bytes > LOG_MAX {
            self.bytes -= self.lines.pop_front().map_or(self.bytes, |oldest| oldest.len());
        }
    }
}

/// Masks the secrets in a text that is no log.
pub(crate) fn masked<'a>(text: &str, secrets: impl IntoIterator<Item = &'a Secret>) -> String {
    Masker::new(secrets).printable(text, true)
}

/// Cuts a line to [`LINE_MAX`] characters and marks the cut.
fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE_MAX) {
        Some((end, _)) => format!("{}{CUT_MARK}", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Assembler, CUT_MARK, LINE_MAX, MASK, RAW_MAX, Stream};
    use crate::secret::Secret;

    fn lines(tail: usize, pieces: &[(Stream, &[u8])], secrets: &[&str]) -> Vec<String> {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::new((*s).to_owned())).collect();
        let mut assembler = Assembler::new(tail);
        for (stream, piece) in pieces {
            assembler.push(*stream, piece);
        }
        assembler.finish(&secrets)
    }

    #[test]
    fn pieces_of_both_streams_become_whole_lines_and_the_last_ones_stay() {
        let pieces: &[(Stream, &[u8])] =
            &[(Stream::Out, b"one\ntw"), (Stream::Err, b"err\n"), (Stream::Out, b"o\nthr"), (Stream::Out, b"ee")];
        assert_eq!(lines(9, pieces, &[]), ["one", "err", "two", "three"]);
        assert_eq!(lines(2, pieces, &[]), ["two", "three"]);
        assert!(lines(0, pieces, &[]).is_empty());
    }

    #[test]
    fn escapes_control_characters_and_invalid_utf8_do_not_pass() {
        let piece: &[u8] = b"\x1b[31mred\x1b[0m \x1b]0;title\x07a\tb\x00\x08c\xffd\r\n";
        assert_eq!(lines(9, &[(Stream::Out, piece)], &[]), ["red a bc\u{fffd}d"]);
    }

    #[test]
    fn a_secret_with_an_escape_in_it_is_masked_and_one_behind_many_escapes_as_well() {
        assert_eq!(
            lines(9, &[(Stream::Out, b"a s3c\x1b[0mret-value b\n")], &["s3cret-value"]),
            [format!("a {MASK} b")]
        );
    }

    #[test]
    fn a_log_of_long_lines_keeps_its_newest_ones_within_bounds() {
        let long = [vec![b'z'; 100_000], b"\n".to_vec()].concat();
        let mut pieces: Vec<(Stream, &[u8])> = vec![(Stream::Out, &long); 500];
        pieces.push((Stream::Out, b"newest\n"));
        let lines = lines(500, &pieces, &[]);
        assert!(lines.len() < 100 && lines.last().unwrap() == "newest", "{} lines", lines.len());
    }

    #[test]
    fn a_secret_is_masked_wherever_it_stands_even_across_the_cut_and_line_by_line() {
        let secret = "s3cret-value";
        let mut long = vec![b'x'; LINE_MAX - 5];
        long.extend_from_slice(secret.as_bytes());
        let line = &lines(9, &[(Stream::Out, &long)], &[secret])[0];
        assert!(!line.contains("s3cre"), "{line}");
        assert!(line.ends_with(CUT_MARK));
        let pem = "first line\nsecond line";
        assert_eq!(lines(9, &[(Stream::Out, b"a second line b\n")], &[pem, "abc"]), [format!("a {MASK} b")]);
    }

    #[test]
    fn a_secret_across_the_end_of_what_is_kept_of_a_line_leaves_no_beginning() {
        let secret = "SECRETVALUE-SECRETVALUE";
        for kept in 1..secret.len() {
            // Only the escapes make the line that long.
            let mut line = b"begin ".repeat(20);
            while line.len() < RAW_MAX - kept - 4 {
                line.extend_from_slice(b"\x1b[0m");
            }
            line.resize(RAW_MAX - kept, b'.');
            line.extend_from_slice(secret.as_bytes());
            let line = &lines(9, &[(Stream::Out, &line)], &[secret])[0];
            assert!(line.starts_with("begin") && !line.contains('S'), "{kept}: {line}");
        }
    }

    #[test]
    fn a_long_line_is_cut_and_marked_whatever_comes_after() {
        let long = vec![b'y'; 3_000_000];
        let line = &lines(9, &[(Stream::Out, &long), (Stream::Out, b"\nnext\n")], &[])[0];
        assert_eq!(line.chars().count(), LINE_MAX + CUT_MARK.chars().count());
    }
}
