//! `--bind` and `--mount` as Apptainer reads them.
//!
//! A bind is `SOURCE[:DESTINATION[:OPTIONS]]`; several stand in one word with commas, and so do options: what is an
//! option is known by its name. `\:` and `\,` are characters of a path. `--mount` is CSV, a mount a line.

use std::path::{Path, PathBuf};

/// One bind, as it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bind {
    /// Of the host; relative ones are of the current folder.
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
    /// The source is an image file, and this path in it is shown.
    pub image_path: Option<PathBuf>,
    /// The source is a SIF file, and this object of it is meant.
    pub image_id: Option<String>,
    /// A container in the container is not told of it.
    pub unnested: bool,
}

impl Bind {
    /// Whether the source is a file system in a file rather than a path of the host.
    pub fn is_image(&self) -> bool {
        self.image_path.is_some() || self.image_id.is_some()
    }
}

/// All binds of one word of `--bind`.
pub fn binds(text: &str) -> Result<Vec<Bind>, String> {
    let mut out: Vec<Bind> = Vec::new();
    let mut last_has_destination = false;
    for item in split(text, ',') {
        // An option belongs to the bind before it, where that has a place for options.
        if last_has_destination && is_option(&item) {
            if let Some(bind) = out.last_mut() {
                option(bind, &item, text)?;
            }
            continue;
        }
        let parts: Vec<String> = split(&item, ':').collect();
        if let [source, .., last] = &parts[..]
            && last.is_empty()
            && !source.is_empty()
        {
            return Err(format!("nothing follows the last colon of '{item}'"));
        }
        let mut parts = parts.into_iter().filter(|part| !part.is_empty());
        let Some(source) = parts.next() else { continue };
        let destination = parts.next();
        if destination.as_ref().is_some_and(|destination| !destination.starts_with('/')) {
            return Err(format!("the destination of '{item}' is not an absolute path"));
        }
        last_has_destination = destination.is_some();
        let destination = destination.unwrap_or_else(|| source.clone());
        let mut bind = Bind {
            source: unescaped(&source).into(),
            destination: unescaped(&destination).into(),
            ..Bind::default()
        };
        for word in parts {
            option(&mut bind, &word, text)?;
        }
        out.push(bind);
    }
    Ok(out)
}

fn is_option(word: &str) -> bool {
    matches!(word, "ro" | "rw") || word.starts_with("image-src=") || word.starts_with("id=")
}

fn option(bind: &mut Bind, word: &str, text: &str) -> Result<(), String> {
    match word.split_once('=').unwrap_or((word, "")) {
        ("ro", "") => bind.read_only = true,
        ("rw", "") => bind.read_only = false,
        ("image-src", path) => bind.image_path = Some(if path.is_empty() { "/".into() } else { path.into() }),
        ("id", id) if !id.is_empty() => bind.image_id = Some(id.to_owned()),
        _ => return Err(format!("{word} is not a valid bind option, in '{text}'")),
    }
    Ok(())
}

/// Parts between separators that no backslash stands before; the backslashes stay.
fn split(text: &str, separator: char) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match parts.last_mut() {
            Some(_) if c == separator && !escaped => parts.push(String::new()),
            Some(part) => part.push(c),
            None => {}
        }
        escaped = c == '\\' && !escaped;
    }
    parts.into_iter()
}

/// Without the backslashes before separators.
fn unescaped(text: &str) -> String {
    text.replace("\\:", ":").replace("\\,", ",")
}

/// All mounts of one word of `--mount`.
pub fn mounts(text: &str) -> Result<Vec<Bind>, String> {
    records(text)?.iter().map(|fields| mount(fields)).collect()
}

fn mount(fields: &[String]) -> Result<Bind, String> {
    let mut bind = Bind::default();
    for field in fields {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let given = || if value.is_empty() { Err(format!("mount {key} cannot be empty")) } else { Ok(value) };
        match key {
            "type" if value == "bind" => {}
            "type" => return Err(format!("unsupported mount type \"{value}\", only 'bind' is supported")),
            "source" | "src" => bind.source = given()?.into(),
            "destination" | "dst" | "target" => bind.destination = given()?.into(),
            "ro" | "readonly" => bind.read_only = true,
            "image-src" => bind.image_path = Some(given()?.into()),
            "id" => bind.image_id = Some(given()?.to_owned()),
            "nonested" => bind.unnested = true,
            "bind-propagation" => {
                return Err("bind-propagation is not supported for one mount".to_owned());
            }
            _ => return Err(format!("invalid key \"{key}\" in mount specification")),
        }
    }
    if bind.source == Path::new("") || bind.destination == Path::new("") {
        return Err("mounts must specify a source and a destination".to_owned());
    }
    if !bind.destination.is_absolute() {
        return Err(format!("the destination {} is not an absolute path", bind.destination.display()));
    }
    Ok(bind)
}

/// CSV (RFC 4180): records by line, fields by comma, quotes around what has either in it.
fn records(text: &str) -> Result<Vec<Vec<String>>, String> {
    let mut out = Vec::new();
    let (mut record, mut field) = (Vec::new(), String::new());
    let mut chars = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            '"' => return Err(format!("bare \" in '{text}'")),
            ',' if !quoted => record.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                if !record.is_empty() || !field.is_empty() {
                    record.push(std::mem::take(&mut field));
                    out.push(std::mem::take(&mut record));
                }
            }
            '\r' if !quoted => {}
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!("a quote is not closed in '{text}'"));
    }
    if !record.is_empty() || !field.is_empty() {
        record.push(field);
        out.push(record);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bind: &Bind) -> String {
        let mut text = format!("{} {}", bind.source.display(), bind.destination.display());
        if bind.read_only {
            text.push_str(" ro");
        }
        if let Some(path) = &bind.image_path {
            text.push_str(&format!(" path={}", path.display()));
        }
        if let Some(id) = &bind.image_id {
            text.push_str(&format!(" id={id}"));
        }
        text
    }

    #[test]
    fn binds_in_all_spellings() {
        for (text, expected) in [
            ("/a", &["/a /a"][..]),
            ("/a,", &["/a /a"]),
            ("/a:/b", &["/a /b"]),
            ("/a:/b:ro", &["/a /b ro"]),
            ("/a:/b:rw", &["/a /b"]),
            ("/a,/c:/d:ro,/e", &["/a /a", "/c /d ro", "/e /e"]),
            ("/a:/b:image-src=/x,id=2,/c", &["/a /b path=/x id=2", "/c /c"]),
            ("/a.img:/b:image-src=,ro", &["/a.img /b ro path=/"]),
            ("/a\\:1:/b\\:2", &["/a:1 /b:2"]),
            ("/a\\,1,/b:/c\\,2:ro", &["/a,1 /a,1", "/b /c,2 ro"]),
            ("relative", &["relative relative"]),
            ("ro", &["ro ro"]),
            ("/a,ro", &["/a /a", "ro ro"]),
        ] {
            let binds: Vec<String> = binds(text).unwrap().iter().map(shown).collect();
            assert_eq!(binds, expected, "{text}");
        }
        for bad in ["/a:/b:rx", "/a:/b:ro:/c", "/a:/b:id=", "/a:", "/a:/b:", "/a:b", "/a::ro"] {
            assert!(binds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts_in_words() {
        for (text, expected) in [
            ("type=bind,source=/a,destination=/b", &["/a /b"][..]),
            ("src=/a,dst=/b,ro", &["/a /b ro"]),
            ("src=/a,target=/b,readonly", &["/a /b ro"]),
            ("\"src=/a,1\",dst=/b", &["/a,1 /b"]),
            ("\"src=/a\"\"q\",dst=/b:c", &["/a\"q /b:c"]),
            ("src=/a,dst=/b\nsrc=/c,dst=/d,image-src=/,id=3\n", &["/a /b", "/c /d path=/ id=3"]),
        ] {
            let mounts: Vec<String> = mounts(text).unwrap().iter().map(shown).collect();
            assert_eq!(mounts, expected, "{text}");
        }
        for (bad, word) in [
            ("type=tmpfs,dst=/b", "tmpfs"),
            ("src=/a", "destination"),
            ("src=,dst=/b", "empty"),
            ("src=/a,dst=b", "absolute"),
            ("src=/a,dst=/b,color=red", "color"),
            ("\"src=/a,dst=/b", "quote"),
            ("src=/a,dst=/b,bind-propagation=shared", "propagation"),
        ] {
            assert!(mounts(bad).unwrap_err().contains(word), "{bad}");
        }
    }
}
