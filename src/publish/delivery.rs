//! Bounds one delivery of log lines to a platform that appends what it gets.

/// Most bytes of one delivery to a platform that appends: proxies take a megabyte by default, and JSON makes text longer.
const DELIVERY_MAX: usize = 400 * 1024;
/// The line that stands in place of lines that were left out of a delivery.
const LEFT_OUT: &str = "[earlier lines are left out]";

/// The newest lines that fit into one delivery. Lines that do not are left out for good: an endless retry of what a proxy
/// finds too large would keep back everything that comes after.
pub(super) fn within_bounds(mut lines: Vec<String>) -> Vec<String> {
    let newest = |most: usize| {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len() + 1;
            bytes <= most
        };
        lines.iter().rev().take_while(fits).count()
    };
    if newest(DELIVERY_MAX) < lines.len() {
        let kept = newest(DELIVERY_MAX - LEFT_OUT.len() - 1);
        lines.drain(..lines.len() - kept);
        lines.insert(0, LEFT_OUT.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(lines: &[String]) -> usize {
        lines.iter().map(|line| line.len() + 1).sum()
    }

    // Shows what README says under "What a pass does": "A delivery has at most 400 KiB of text, the newest lines.".
    #[test]
    fn a_delivery_has_the_newest_lines_that_fit_and_says_that_others_are_left_out() {
        for length in [1, 99, 4000, DELIVERY_MAX / 2, DELIVERY_MAX - 40] {
            let lines: Vec<String> =
                (0..DELIVERY_MAX / length + 3).map(|n| format!("{n}{}", "x".repeat(length))).collect();
            let kept = within_bounds(lines.clone());
            assert!(bytes(&kept) <= DELIVERY_MAX, "{} bytes of lines of {length}", bytes(&kept));
            assert_eq!(kept[0], LEFT_OUT);
            assert!(kept.len() > 1 && lines.ends_with(&kept[1..]), "the newest of lines of {length}");
            let one_more = lines[lines.len() - kept.len()].len() + 1;
            assert!(bytes(&kept) + one_more > DELIVERY_MAX, "another line of {length} would have fitted");
        }
    }

    #[test]
    fn what_fits_is_delivered_whole() {
        for lines in [vec![], vec!["one".to_owned()], vec!["x".repeat(99); DELIVERY_MAX / 100]] {
            assert_eq!(within_bounds(lines.clone()), lines);
        }
    }

    #[test]
    fn a_newest_line_that_is_too_long_by_itself_is_left_out_as_well() {
        let lines = vec!["before".to_owned(), "x".repeat(DELIVERY_MAX)];
        assert_eq!(within_bounds(lines), [LEFT_OUT]);
    }
}
