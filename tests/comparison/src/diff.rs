//! Differences of two texts, by lines.

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line<'a> {
    Same(&'a str),
    Less(&'a str),
    More(&'a str),
}

/// By the longest common subsequence: outputs are short enough for the plain table.
fn compare<'a>(before: &'a str, after: &'a str) -> Vec<Line<'a>> {
    let (a, b): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let rest = a.len().min(b.len()) - head;
    let tail = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(x, y)| x == y).count();
    let (x, y) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    let mut length = vec![vec![0u32; y.len() + 1]; x.len() + 1];
    for i in (0..x.len()).rev() {
        for j in (0..y.len()).rev() {
            length[i][j] =
                if x[i] == y[j] { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let mut lines: Vec<Line<'a>> = a[..head].iter().map(|line| Line::Same(line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < x.len() || j < y.len() {
        if i < x.len() && j < y.len() && x[i] == y[j] {
            lines.push(Line::Same(x[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == y.len() || (i < x.len() && length[i + 1][j] >= length[i][j + 1]) {
            lines.push(Line::Less(x[i]));
            i += 1;
        } else {
            lines.push(Line::More(y[j]));
            j += 1;
        }
    }
    lines.extend(a[a.len() - tail..].iter().map(|line| Line::Same(line)));
    lines
}

/// The differing lines: `- ` for those only in the first text, `+ ` for those only in the second.
pub(crate) fn lines(before: &str, after: &str) -> Vec<String> {
    let differing = compare(before, after).into_iter().filter_map(|line| match line {
        Line::Same(_) => None,
        Line::Less(line) => Some(format!("- {line}").trim_end().to_owned()),
        Line::More(line) => Some(format!("+ {line}").trim_end().to_owned()),
    });
    differing.collect()
}

/// The same with two lines around each difference, for people.
pub(crate) fn with_context(before: &str, after: &str) -> String {
    const AROUND: usize = 2;
    let lines = compare(before, after);
    let near = |index: usize| {
        let range = index.saturating_sub(AROUND)..(index + AROUND + 1).min(lines.len());
        lines[range].iter().any(|line| !matches!(line, Line::Same(_)))
    };
    let mut text = String::new();
    let mut skipped = false;
    for (index, line) in lines.iter().enumerate() {
        if !near(index) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            text.push_str("  ...\n");
        }
        let (mark, line) = match line {
            Line::Same(line) => (' ', line),
            Line::Less(line) => ('-', line),
            Line::More(line) => ('+', line),
        };
        text.push_str(&format!("{mark} {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        assert!(lines("a\nb\n", "a\nb\n").is_empty());
        assert_eq!(lines("a\nb\nc\n", "a\nx\nc\nd\n"), ["- b", "+ x", "+ d"]);
        assert_eq!(with_context("1\n2\n3\n4\n5\n", "1\n2\n3\n4\n6\n"), "  ...\n  3\n  4\n- 5\n+ 6\n");
    }
}
