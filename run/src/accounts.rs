//! The users and groups of an image that has no `/etc/passwd` of its own (`man 5 passwd`, `man 5
//! group`).
//!
//! Servers look for the account that their package made (`www-data`, `postgres`), so an image of the
//! host's files knows the host's system accounts. People's accounts stay out of it, except that of a
//! user whom `-u` names.

use std::{fs, path::Path};

/// Ids below this are the system's (Debian policy, section 9.2.2), and so is that of `nobody`.
const FIRST_PERSON: u32 = 1000;
const NOBODY: u32 = 65534;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";

/// The content of `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accounts {
    /// `/etc/passwd`.
    pub(crate) passwd: String,
    /// `/etc/group`.
    pub(crate) group: String,
}

impl Default for Accounts {
    /// Root and nobody.
    fn default() -> Self {
        Self { passwd: PASSWD.to_owned(), group: GROUP.to_owned() }
    }
}

impl Accounts {
    /// The host's system accounts, and those whose name or number is among `named`. What cannot be
    /// read is as in [`Self::default`].
    pub(crate) fn of_host(named: &[&str]) -> Self {
        Self::of(Path::new("/etc"), named)
    }

    fn of(etc: &Path, named: &[&str]) -> Self {
        let read = |name: &str| fs::read_to_string(etc.join(name)).ok();
        Self {
            passwd: read("passwd").map_or(PASSWD.to_owned(), |text| chosen(&text, 7, named)),
            group: read("group").map_or(GROUP.to_owned(), |text| chosen(&text, 4, named)),
        }
    }
}

/// The lines of `count` fields that go into the image, without passwords.
fn chosen(text: &str, count: usize, named: &[&str]) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, ..] = fields[..] else { continue };
        let Ok(number) = id.parse::<u32>() else { continue };
        let is_system = number < FIRST_PERSON || number == NOBODY;
        if fields.len() == count && (is_system || named.contains(&name) || named.contains(&id)) {
            fields[1] = "x";
            out.push_str(&fields.join(":"));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_passwords_stay_out() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:secret:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www:/var/www:/bin/sh\n\
                      anna:x:1000:1000:Anna:/home/anna:/bin/bash\nbert:x:1001:1001::/home/b:/bin/sh\n\
                      +nis\nbroken:x:x:0::/:/bin/sh\nshort:x:5\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        fs::write(dir.path().join("passwd"), passwd).unwrap();
        let accounts = Accounts::of(dir.path(), &["anna"]);
        let names: Vec<_> =
            accounts.passwd.lines().map(|line| line.split(':').next().unwrap()).collect();
        assert_eq!(names, ["root", "www-data", "anna", "nobody"]);
        assert!(accounts.passwd.starts_with("root:x:0:0:"));
        assert_eq!(accounts.group, GROUP);
        assert_eq!(Accounts::of(&dir.path().join("none"), &[]), Accounts::default());
    }
}
