//! Mutated JSON bodies of the API: never a panic; a refusal names its field; what is accepted survives its own JSON.
//! `fuzz/fuzz_targets/api_body.rs` does the same without end.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmkeep_api::body::*;
use vmkeep_types::manifest::body_from_json;

/// A well-formed body of each kind.
fn bodies() -> Vec<Value> {
    vec![
        json!({"manifests": [{"kind": "vm", "name": "a"}], "dry_run": true, "restart": false}),
        json!({"timeout": "30s", "name": "b"}),
        json!({"domain": "old", "name": "new", "disks": false}),
        json!({"command": ["ls", "-l"], "stdin": "x", "timeout": "10s"}),
        json!({"keys": ["leftctrl", "leftalt", "delete"]}),
        json!({"name": "ci", "role": "operator", "expires_in": "7d"}),
        json!({"name": "data", "pool": "default", "size": "20G", "format": "auto", "image": null}),
    ]
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides.max(1)
    }
}

fn mutate(dice: &mut Dice, value: &mut Value) {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(0.5),
        json!([]),
        json!({}),
        json!(""),
        json!("x\u{1b}[31m"),
        json!("A/b"),
        json!([[[]]]),
    ];
    match value {
        Value::Object(map) if !map.is_empty() && dice.roll(4) > 0 => {
            let key = map.keys().nth(dice.roll(map.len())).cloned().unwrap_or_default();
            match dice.roll(6) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}x"), json!(1))),
                _ => mutate(dice, map.entry(key).or_insert(Value::Null)),
            }
        }
        Value::Array(items) if !items.is_empty() && dice.roll(3) > 0 => {
            let at = dice.roll(items.len());
            mutate(dice, &mut items[at]);
        }
        other => *other = odd[dice.roll(odd.len())].clone(),
    }
}

/// True when it was accepted.
fn read<T: DeserializeOwned + Serialize>(value: &Value) -> bool {
    match body_from_json::<T>(value.clone()) {
        Ok(body) => {
            let json = serde_json::to_value(&body).expect("bodies have only text keys");
            let again = body_from_json::<T>(json.clone()).unwrap_or_else(|e| panic!("{json}: {e}"));
            assert_eq!(serde_json::to_value(&again).expect("as before"), json);
            true
        }
        Err(error) => {
            assert!(!error.problems.is_empty(), "{value}: {error}");
            assert!(error.problems.iter().all(|p| !p.message.is_empty() && !p.message.chars().any(char::is_control)), "{error:?}");
            false
        }
    }
}

#[test]
fn mutated_bodies() {
    let (mut good, mut bad) = (0, 0);
    for seed in 1..=5_000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bodies = bodies();
        let mut value = bodies[dice.roll(bodies.len())].clone();
        for _ in 0..=dice.roll(3) {
            mutate(&mut dice, &mut value);
        }
        let answers = [
            read::<ApplyRequest>(&value),
            read::<ActionRequest>(&value),
            read::<AdoptRequest>(&value),
            read::<ExecRequest>(&value),
            read::<SendKeyRequest>(&value),
            read::<TokenCreate>(&value),
            read::<VolumeCreate>(&value),
        ];
        let accepted = answers.iter().filter(|a| **a).count();
        (good, bad) = (good + accepted, bad + answers.len() - accepted);
    }
    assert!(good > 500 && bad > 500, "the mutations are neither too mild nor too wild: {good} good, {bad} bad");
}

#[test]
fn the_bodies_themselves_are_good() {
    let [apply, action, adopt, exec, keys, token, volume] = <[Value; 7]>::try_from(bodies()).expect("seven kinds");
    assert!(read::<ApplyRequest>(&apply) && read::<ActionRequest>(&action) && read::<AdoptRequest>(&adopt) && read::<ExecRequest>(&exec));
    assert!(read::<SendKeyRequest>(&keys) && read::<TokenCreate>(&token) && read::<VolumeCreate>(&volume));
}
