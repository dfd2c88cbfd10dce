//! Parses texts into values. Each fault becomes a problem and the parsing goes on, so that all problems are reported at
//! once.

use std::fs;
use std::ops::RangeInclusive;

use serde_json::Value;
use ureq::http::Uri;

use super::{Notice, Problem};
use crate::secret::Secret;

/// Parses fields one by one and collects what is wrong with them.
pub(super) struct FieldParser {
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<Notice>,
}

impl FieldParser {
    /// Adds a problem, unless it is known already. A fault in a variable that all lanes share is found once for each
    /// lane.
    pub(super) fn problem(&mut self, variable: &str, what: String, cure: &str) {
        let problem = Problem::new(variable, what, cure);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Parses `true`, `1`, `yes`, `on` and their opposites. A variable that is not set is `false`.
    pub(super) fn flag(&mut self, variable: &str, text: Option<&str>) -> bool {
        self.choice(variable, text).unwrap_or(false)
    }

    /// Parses the same, with `None` for a variable that is not set or is neither of the two.
    pub(super) fn choice(&mut self, variable: &str, text: Option<&str>) -> Option<bool> {
        match text?.trim().to_ascii_lowercase().as_str() {
            "false" | "0" | "no" | "off" => Some(false),
            "true" | "1" | "yes" | "on" => Some(true),
            other => {
                self.problem(variable, format!("{other:?} is neither true nor false"), "use true or false");
                None
            }
        }
    }

    /// Parses a whole number within `range`. After a fault it returns the lower end of the range.
    pub(super) fn number(&mut self, variable: &str, text: Option<&str>, range: RangeInclusive<u64>) -> u64 {
        let text = text.unwrap_or_default().trim();
        match text.parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let cure = format!("use a whole number from {} to {}", range.start(), range.end());
                self.problem(variable, format!("{text:?} is out of range"), &cure);
                *range.start()
            }
        }
    }

    /// Parses a number of bytes as the docker client does. `k`, `m` or `g` after it multiplies by 1024, and `b` or `ib`
    /// may follow.
    pub(super) fn bytes(&mut self, variable: &str, text: Option<&str>) -> Option<i64> {
        let text = text?.trim().to_ascii_lowercase();
        let digits = text.trim_end_matches("ib").trim_end_matches('b');
        let (digits, unit) = match digits.char_indices().last() {
            Some((at, 'k')) => (digits.get(..at), 1024),
            Some((at, 'm')) => (digits.get(..at), 1024 * 1024),
            Some((at, 'g')) => (digits.get(..at), 1024 * 1024 * 1024),
            _ => (Some(digits), 1_i64),
        };
        let bytes = digits.and_then(|digits| digits.trim().parse::<i64>().ok()).and_then(|n| n.checked_mul(unit));
        if bytes.is_none_or(|bytes| bytes <= 0) {
            self.problem(
                variable,
                format!("{text:?} is no size"),
                "use bytes, or a number with k, m or g, such as 512m",
            );
        }
        bytes
    }

    /// Parses a list, in JSON or separated by commas.
    pub(super) fn list(&mut self, variable: &str, text: Option<&str>) -> Option<Vec<String>> {
        let text = text?.trim();
        if !text.starts_with('[') {
            return Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect());
        }
        match serde_json::from_str::<Vec<Value>>(text) {
            Ok(items) => Some(items.into_iter().map(plain_text).collect()),
            Err(error) => {
                self.problem(variable, format!("it is not a JSON list: {error}"), "use a,b or [\"a\",\"b\"]");
                None
            }
        }
    }

    /// Parses a map: a JSON object, or `name=value` separated by commas.
    pub(super) fn map(&mut self, variable: &str, text: Option<&str>) -> Option<Vec<(String, String)>> {
        let text = text?.trim();
        let pairs = if text.starts_with('{') {
            serde_json::from_str::<serde_json::Map<String, Value>>(text)
                .ok()
                .map(|map| map.into_iter().map(|(name, value)| (name, plain_text(value))).collect())
        } else {
            let pair = |item: &str| {
                item.trim().split_once('=').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            };
            text.split(',').filter(|item| !item.trim().is_empty()).map(pair).collect()
        };
        if pairs.is_none() {
            self.problem(variable, "it is no map".to_owned(), "use a=1,b=2 or {\"a\":\"1\"}");
        }
        pairs
    }

    /// Parses an `http` or `https` URL without user, query or fragment, and removes slashes at its end.
    pub(super) fn url(&mut self, variable: &str, text: Option<&str>) -> Option<String> {
        let cure = "use http://HOST or https://HOST, with a port and base path if there is one";
        let Some(text) = text.map(|text| text.trim().trim_end_matches('/')) else {
            self.problem(variable, "it is not set".to_owned(), cure);
            return None;
        };
        let good = text.parse::<Uri>().is_ok_and(|uri| {
            let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let after_host = authority.strip_prefix(uri.host().unwrap_or_default()).unwrap_or_default();
            let port = after_host.is_empty() || uri.port_u16().is_some();
            scheme
                && port
                && !authority.is_empty()
                && !authority.contains('@')
                && uri.query().is_none()
                && !text.contains('#')
        });
        if !good {
            // The text is not shown, because it may hold a password.
            self.problem(variable, "it is no URL that can be used here".to_owned(), cure);
            return None;
        }
        // Upper and lower case do not differ in a scheme, and everything after this compares it.
        text.split_once(':').map(|(scheme, rest)| format!("{}:{rest}", scheme.to_ascii_lowercase()))
    }

    /// Checks that the HTTP client can use this URL of a proxy. The client is built without SOCKS.
    pub(super) fn proxy(&mut self, variable: &str, url: &Secret) {
        use ureq::ProxyProtocol::{Http, Https};
        let usable = ureq::Proxy::new(url.expose())
            .is_ok_and(|proxy| matches!(proxy.protocol(), Http | Https) && !proxy.host().is_empty());
        if !usable {
            self.problem(variable, "it is no URL of a proxy".to_owned(), "use http://HOST:PORT");
        }
    }

    /// Parses a tenant of OpenAEV, which becomes a segment of paths.
    pub(super) fn tenant(&mut self, variable: &str, text: Option<&str>) -> Option<String> {
        let text = text?.trim();
        let usable = text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        if !usable {
            let cure = "use letters, digits, '-' and '_', at most 63";
            self.problem(variable, format!("{text:?} can be no tenant"), cure);
        }
        usable.then(|| text.to_owned())
    }

    /// Parses certificates: PEM texts, or paths of files that hold them.
    pub(super) fn certificates(&mut self, variable: &str, text: Option<&str>) -> Vec<String> {
        let Some(text) = text.map(str::trim) else { return vec![] };
        // PEM texts may have comments with commas in them, so they are not split at commas.
        let items = if text.contains("-----BEGIN") && !text.starts_with(['[', '/', '.']) {
            vec![text.to_owned()]
        } else {
            self.list(variable, Some(text)).unwrap_or_default()
        };
        let mut certificates = Vec::new();
        for item in items {
            let pem = if item.contains("-----BEGIN") {
                item.replace("\\n", "\n")
            } else {
                match fs::read_to_string(&item) {
                    Ok(pem) => pem,
                    Err(error) => {
                        self.problem(variable, format!("cannot read {item}: {error}"), "name a readable PEM file");
                        continue;
                    }
                }
            };
            let readable = ureq::tls::parse_pem(pem.as_bytes())
                .filter_map(Result::ok)
                .any(|item| matches!(item, ureq::tls::PemItem::Certificate(_)));
            if readable {
                certificates.push(pem);
            } else {
                self.problem(variable, "it holds no PEM certificate".to_owned(), "use -----BEGIN CERTIFICATE-----");
            }
        }
        certificates
    }
}

/// Splits a list of hosts that are reached without a proxy.
pub(super) fn hosts(text: &str) -> Vec<String> {
    text.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
}

fn plain_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
