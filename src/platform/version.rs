//! Reads the versions of platforms.

/// The numbers `major.minor.patch` at the beginning of a version. `None` for development builds that have no such
/// numbers.
pub(crate) fn parse(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || parts.next()?.ok();
    let (major, minor) = (next()?, next()?);
    Some((major, minor, next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_version_is_read_as_far_as_it_is_one() {
        assert_eq!(parse("6.8.0"), Some((6, 8, 0)));
        assert_eq!(parse("7.261026.0-lts.2"), Some((7, 261_026, 0)));
        assert_eq!(parse("6.10"), Some((6, 10, 0)));
        assert!(parse("6.10.1") > parse("6.9.17"), "by number, not by text");
        for development in ["", "master", "6", "v6.8.0", ".8.0"] {
            assert_eq!(parse(development), None, "{development}: nothing is known of it, so it is tried");
        }
    }
}
