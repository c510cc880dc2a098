//! Which users there are inside.

/// `inside outside count` of a uid_map or gid_map line (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) count: u32,
}

/// Root inside is the user outside; further users inside are the ranges that an administrator gave the user (subuid(5)).
pub(crate) fn ranges(own: u32, given: &[(u32, u32)]) -> Vec<Range> {
    let mut ranges = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut next = 1;
    for &(outside, count) in given {
        let count = count.min(u32::MAX - 1 - next);
        if count > 0 {
            ranges.push(Range { inside: next, outside, count });
            next += count;
        }
    }
    ranges
}

/// The ranges of a user in the text of `/etc/subuid` or `/etc/subgid`, where lines begin with the name or the number.
pub(crate) fn given(text: &str, name: &str, id: u32) -> Vec<(u32, u32)> {
    let id = id.to_string();
    let parse = |line: &str| {
        let mut parts = line.trim().split(':');
        let owner = parts.next()?;
        let range = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (owner == name || owner == id).then_some(range)
    };
    text.lines().filter_map(parse).collect()
}

/// As `newuidmap` and `newgidmap` want them after the process id.
pub(crate) fn arguments(ranges: &[Range]) -> Vec<String> {
    ranges.iter().flat_map(|r| [r.inside, r.outside, r.count]).map(|number| number.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ranges_there_is_one_user() {
        assert_eq!(ranges(1000, &[]), [Range { inside: 0, outside: 1000, count: 1 }]);
    }

    #[test]
    fn given_ranges_follow_each_other_inside() {
        let text = "other:1:2\nann:100000:65536\n# ann\n1000:300000:10\nann:broken\n";
        let given = given(text, "ann", 1000);
        assert_eq!(given, [(100_000, 65_536), (300_000, 10)]);
        let all = ranges(1000, &given);
        assert_eq!(all[1], Range { inside: 1, outside: 100_000, count: 65_536 });
        assert_eq!(all[2], Range { inside: 65_537, outside: 300_000, count: 10 });
        assert_eq!(arguments(&all[..2]), ["0", "1000", "1", "1", "100000", "65536"]);
    }

    #[test]
    fn a_range_never_overflows() {
        let all = ranges(1000, &[(1, u32::MAX)]);
        assert_eq!(all[1].count, u32::MAX - 2);
    }
}
