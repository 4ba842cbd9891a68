//! Key names and their Linux key codes (linux/input-event-codes.h, without KEY_ and in lower case).

use vmkeep_types::error::Error;
use vmkeep_types::nearest;

#[rustfmt::skip]
const KEYS: &[(&str, u32)] = &[
    ("esc", 1), ("1", 2), ("2", 3), ("3", 4), ("4", 5), ("5", 6), ("6", 7), ("7", 8), ("8", 9), ("9", 10), ("0", 11),
    ("minus", 12), ("equal", 13), ("backspace", 14), ("tab", 15),
    ("q", 16), ("w", 17), ("e", 18), ("r", 19), ("t", 20), ("y", 21), ("u", 22), ("i", 23), ("o", 24), ("p", 25),
    ("leftbrace", 26), ("rightbrace", 27), ("enter", 28), ("leftctrl", 29),
    ("a", 30), ("s", 31), ("d", 32), ("f", 33), ("g", 34), ("h", 35), ("j", 36), ("k", 37), ("l", 38),
    ("semicolon", 39), ("apostrophe", 40), ("grave", 41), ("leftshift", 42), ("backslash", 43),
    ("z", 44), ("x", 45), ("c", 46), ("v", 47), ("b", 48), ("n", 49), ("m", 50),
    ("comma", 51), ("dot", 52), ("slash", 53), ("rightshift", 54), ("kpasterisk", 55), ("leftalt", 56), ("space", 57), ("capslock", 58),
    ("f1", 59), ("f2", 60), ("f3", 61), ("f4", 62), ("f5", 63), ("f6", 64), ("f7", 65), ("f8", 66), ("f9", 67), ("f10", 68),
    ("numlock", 69), ("scrolllock", 70),
    ("kp7", 71), ("kp8", 72), ("kp9", 73), ("kpminus", 74), ("kp4", 75), ("kp5", 76), ("kp6", 77), ("kpplus", 78),
    ("kp1", 79), ("kp2", 80), ("kp3", 81), ("kp0", 82), ("kpdot", 83), ("102nd", 86), ("f11", 87), ("f12", 88),
    ("kpenter", 96), ("rightctrl", 97), ("kpslash", 98), ("sysrq", 99), ("rightalt", 100), ("linefeed", 101),
    ("home", 102), ("up", 103), ("pageup", 104), ("left", 105), ("right", 106), ("end", 107), ("down", 108), ("pagedown", 109),
    ("insert", 110), ("delete", 111), ("mute", 113), ("volumedown", 114), ("volumeup", 115), ("power", 116), ("kpequal", 117),
    ("pause", 119), ("leftmeta", 125), ("rightmeta", 126), ("compose", 127), ("stop", 128), ("menu", 139), ("sleep", 142), ("wakeup", 143),
    ("f13", 183),
];

/// The code of a key by its name.
///
/// # Errors
/// There is no such key; the nearest name is in the message.
pub fn code(name: &str) -> Result<u32, Error> {
    let wanted = name.to_ascii_lowercase();
    let wanted = wanted.strip_prefix("key_").unwrap_or(&wanted);
    if let Some((_, code)) = KEYS.iter().find(|(key, _)| *key == wanted) {
        return Ok(*code);
    }
    let near =
        nearest::nearest(wanted, KEYS.iter().map(|(key, _)| *key)).map_or_else(String::new, |key| format!("; did you mean '{key}'?"));
    let shown: String = name.chars().take(40).collect();
    Err(Error::invalid(format!("there is no key '{shown}'{near}"))
        .hint("names are those of `virsh send-key` without KEY_, like leftctrl, leftalt, delete, f1"))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(name: &str, expect: Expect) {
        expect.assert_eq(&code(name).map_or_else(|e| e.message, |code| code.to_string()));
    }

    #[test]
    fn names_and_slips() {
        check("leftctrl", expect!["29"]);
        check("KEY_DELETE", expect!["111"]);
        check("f12", expect!["88"]);
        check("leftcrtl", expect!["there is no key 'leftcrtl'; did you mean 'leftctrl'?"]);
        check("banana", expect!["there is no key 'banana'"]);
    }

    #[test]
    fn no_name_and_no_code_stands_twice() {
        let names: std::collections::BTreeSet<_> = KEYS.iter().map(|(name, _)| name).collect();
        let codes: std::collections::BTreeSet<_> = KEYS.iter().map(|(_, code)| code).collect();
        assert_eq!((names.len(), codes.len()), (KEYS.len(), KEYS.len()));
    }
}
