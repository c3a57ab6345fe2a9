//! Text in columns, as Go's text/tabwriter sets it; and times as Go prints them.

use isles_spec::time::rfc3339;

/// Cells of lines, each but the last of a line as wide as the widest in its column and `gap` blanks more.
pub fn aligned(lines: &[Vec<String>], gap: usize) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = lines.iter().filter(|line| line.len() > column + 1).map(|line| &line[column]);
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + gap
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

/// `2020-06-30 00:01:56 +0000 UTC`
pub fn time(seconds: i64) -> String {
    // Beyond this no calendar reaches.
    let seconds = seconds.clamp(-(1 << 40), 1 << 40);
    format!("{} +0000 UTC", rfc3339(seconds).trim_end_matches('Z').replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_aligned() {
        let line = |cells: &[&str]| cells.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        let text = aligned(&[line(&["a:", "1"]), line(&["long:", "22"]), line(&["alone"])], 1);
        assert_eq!(text, "a:    1\nlong: 22\nalone\n");
        assert_eq!(time(1_593_475_316), "2020-06-30 00:01:56 +0000 UTC");
        for odd in [i64::MIN, i64::MAX] {
            assert!(time(odd).ends_with("UTC"));
        }
    }
}
