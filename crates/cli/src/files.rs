//! Manifests from files, directories and stdin; `@file` in them is read here, on the computer of the person who wrote it.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use vmkeep_types::error::Error;
use vmkeep_types::image::ImageSpec;
use vmkeep_types::manifest::{Document, Manifest, TEXT_BYTES_MAX, parse_all};
use vmkeep_types::network::NetworkSpec;
use vmkeep_types::pool::PoolSpec;
use vmkeep_types::vm::{CloudInit, VmSpec};

use crate::failure::Failure;

/// The largest file behind an `@`: cloud-init's own limit for user-data on most clouds is 16 KiB.
const AT_FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks everything that `-f` names, with all problems of all files in one error.
pub fn read_manifests(paths: &[PathBuf]) -> Result<Vec<Document>, Failure> {
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut origins = HashMap::new();
    for path in expand(paths)? {
        let text = read_text(&path)?;
        let shown = if path == Path::new("-") { "stdin".to_owned() } else { path.display().to_string() };
        let base = path.parent().map(Path::to_owned).unwrap_or_default();
        origins.insert(shown.clone(), base);
        texts.push((shown, text));
    }
    let files: Vec<(&str, &str)> = texts.iter().map(|(f, t)| (f.as_str(), t.as_str())).collect();
    let mut documents = parse_all(&files)?;
    for document in &mut documents {
        let base = origins.get(&*document.file).cloned().unwrap_or_default();
        if let Manifest::Vm(spec) = &mut document.manifest {
            read_at_files(spec, &base)?;
        }
    }
    Ok(documents)
}

/// Directories become their manifests, in order of name.
fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut out = Vec::new();
    for path in paths {
        if path == Path::new("-") || !path.is_dir() {
            out.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| Failure::io(format!("cannot read {}", path.display()), &e))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_manifest(p)).collect();
        files.sort();
        if files.is_empty() {
            return Err(Failure::usage(format!("{} holds no .yaml, .yml or .json file", path.display()), "give a file, or '-' for stdin"));
        }
        out.append(&mut files);
    }
    Ok(out)
}

fn is_manifest(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read_text(path: &Path) -> Result<String, Failure> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large" without reading all of a wrong file.
    let limit = TEXT_BYTES_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|e| Failure::io("cannot read stdin", &e))?;
    } else {
        let file = std::fs::File::open(path).map_err(|e| Failure::io(what(), &e))?;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| Failure::io(what(), &e))?;
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::invalid(format!("{}: not UTF-8 text (byte {at})", path.display())).hint("is it a manifest?").into()
    })
}

/// `@~/.ssh/id.pub` in keys, password, user-data and network-data; relative to the manifest's directory.
pub fn read_at_files(spec: &mut VmSpec, base: &Path) -> Result<(), Failure> {
    let Some(CloudInit { ssh_keys, password, user_data, network_data, .. }) = &mut spec.cloud_init else { return Ok(()) };
    let texts = [("password", password), ("user_data", user_data), ("network_data", network_data)];
    for (field, text) in texts {
        if let Some(file) = text.as_ref().and_then(|t| t.strip_prefix('@')) {
            let read = read_at(field, file, base)?;
            *text = Some(if field == "password" { read.trim_end_matches(['\r', '\n']).to_owned() } else { read });
        }
    }
    let mut keys = Vec::new();
    for key in std::mem::take(ssh_keys) {
        match key.strip_prefix('@') {
            Some(file) => keys.extend(key_lines(&read_at("ssh_keys", file, base)?)),
            None => keys.push(key),
        }
    }
    *ssh_keys = keys;
    Ok(())
}

/// The keys of an `id.pub` or `authorized_keys`.
pub fn key_lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect()
}

fn read_at(field: &str, file: &str, base: &Path) -> Result<String, Failure> {
    let path = match file.strip_prefix("~/") {
        Some(rest) => home().ok_or_else(|| Error::invalid(format!("cloud_init.{field}: @{file}: HOME is not set")))?.join(rest),
        None => base.join(file),
    };
    let what = format!("cloud_init.{field}: cannot read {}", path.display());
    let meta = std::fs::metadata(&path).map_err(|e| Failure::io(&what, &e))?;
    if meta.len() > AT_FILE_BYTES_MAX {
        return Err(Error::invalid(format!("{what}: it is larger than {AT_FILE_BYTES_MAX} bytes")).into());
    }
    let text = std::fs::read_to_string(&path).map_err(|e| Failure::io(&what, &e))?;
    if field == "ssh_keys" && text.contains("PRIVATE KEY") {
        return Err(Error::invalid(format!("{what}: it is a private key")).hint("give the .pub file beside it").into());
    }
    Ok(text)
}

pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|h| !h.is_empty()).map(PathBuf::from)
}

/// One manifest of one kind, as it comes out of an editor.
fn read_one(file: &str, text: &str) -> Result<Manifest, Failure> {
    let mut documents = vmkeep_types::manifest::parse(file, text)?;
    match (documents.pop(), documents.is_empty()) {
        (Some(document), true) => Ok(document.manifest),
        _ => Err(Error::invalid(format!("{file}: one manifest is edited at a time")).into()),
    }
}

pub fn read_vm(file: &str, text: &str) -> Result<VmSpec, Failure> {
    match read_one(file, text)? {
        Manifest::Vm(mut spec) => {
            read_at_files(&mut spec, Path::new("."))?;
            Ok(spec)
        }
        other => Err(Error::invalid(format!("{file}: it was a vm and is a {} now", other.kind())).into()),
    }
}

pub fn read_network(file: &str, text: &str) -> Result<NetworkSpec, Failure> {
    match read_one(file, text)? {
        Manifest::Network(spec) => Ok(spec),
        other => Err(Error::invalid(format!("{file}: it was a network and is a {} now", other.kind())).into()),
    }
}

pub fn read_image(file: &str, text: &str) -> Result<ImageSpec, Failure> {
    match read_one(file, text)? {
        Manifest::Image(spec) => Ok(spec),
        other => Err(Error::invalid(format!("{file}: it was an image and is a {} now", other.kind())).into()),
    }
}

pub fn read_pool(file: &str, text: &str) -> Result<PoolSpec, Failure> {
    match read_one(file, text)? {
        Manifest::Pool(spec) => Ok(spec),
        other => Err(Error::invalid(format!("{file}: it was a pool and is a {} now", other.kind())).into()),
    }
}
