//! `WWW-Authenticate` challenges (RFC 9110, section 11.6.1; distribution's token specification).

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of the header values, in order; unknown schemes are passed over.
pub(crate) fn parse<'a>(headers: impl Iterator<Item = &'a str>) -> Vec<Challenge> {
    headers.flat_map(parse_one).collect()
}

fn parse_one(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let scheme = rest[..end].to_ascii_lowercase();
        rest = rest[end..].trim_start();
        let mut parameters = Vec::new();
        while let Some((key, value, after)) = parameter(rest) {
            parameters.push((key, value));
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        let get = |name: &str| parameters.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        match (scheme.as_str(), get("realm")) {
            ("bearer", Some(realm)) => {
                found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
            ("basic", _) => found.push(Challenge::Basic),
            _ => {}
        }
        if parameters.is_empty() {
            // Neither a scheme that we know nor parameters: go on behind the next comma.
            rest = rest.split_once(',').map_or("", |(_, after)| after.trim_start());
        }
    }
    found
}

/// `key=value` or `key="value"` at the start of `text`, and what follows.
fn parameter(text: &str) -> Option<(String, String, &str)> {
    let (key, rest) = text.split_once('=')?;
    let key = key.trim_end();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.!#$%&'*+^`|~".contains(&b)) {
        return None;
    }
    let rest = rest.trim_start();
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find([',', ' ']).unwrap_or(rest.len());
        return Some((key.to_ascii_lowercase(), rest[..end].to_owned(), &rest[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Some((key.to_ascii_lowercase(), value, &quoted[i + 1..])),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    Some((key.to_ascii_lowercase(), value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_known_registries() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        };
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            ("Basic realm=\"x, y\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            ("bearer realm=https://a/t , service = s", vec![bearer("https://a/t", Some("s"), None)]),
            (r#"Negotiate, Basic realm="x""#, vec![Challenge::Basic]),
            (r#"Negotiate abc==, Basic realm="x""#, vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/t",error="invalid_token", Basic realm="r""#,
                vec![bearer("https://a/t", None, None), Challenge::Basic],
            ),
            (r#"Bearer realm="a\"b"#, vec![bearer("a\"b", None, None)]),
            ("Bearer service=x", vec![]),
            ("", vec![]),
            (",,,", vec![]),
            ("=", vec![]),
            ("Basic =x", vec![Challenge::Basic]),
        ] {
            assert_eq!(parse([text].into_iter()), expected, "{text}");
        }
    }
}
