//! What a file is, by its own first bytes, and what the disk inside is made for.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmkeep_types::error::Error;
use vmkeep_types::vm::Firmware;

/// Formats that are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Vmdk,
    Vhdx,
    Vpc,
    Vdi,
    Ova,
    Iso,
    Raw,
}

impl Format {
    /// QEMU's name of it.
    pub fn qemu(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vpc => "vpc",
            Self::Vdi => "vdi",
            Self::Ova | Self::Iso | Self::Raw => "raw",
        }
    }
}

/// # Errors
/// The file cannot be read, is empty, or is a format we know and do not take.
pub fn format(path: &Path) -> Result<Format, Error> {
    let head = bytes_at(path, 0, 1024)?;
    if head.is_empty() {
        return Err(Error::invalid(format!("{} is empty", path.display())));
    }
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(b"\x1f\x8b") || starts(b"\xfd7zXZ") || starts(b"(\xb5/\xfd") || starts(b"BZh") || starts(b"PK\x03\x04") {
        return Err(
            Error::invalid("the file is compressed").hint("unpack it first (gunzip, unxz, unzstd) and import the disk image inside")
        );
    }
    if starts(b"# Disk DescriptorFile") {
        let why = "a VMDK descriptor names other files, which would be read with the daemon's rights";
        return Err(Error::invalid(why).hint("convert it first: qemu-img convert -O qcow2 DISK.vmdk DISK.qcow2"));
    }
    let known = match () {
        () if starts(b"QFI\xfb") => Format::Qcow2,
        () if starts(b"KDMV") => Format::Vmdk,
        () if starts(b"vhdxfile") => Format::Vhdx,
        () if starts(b"conectix") => Format::Vpc,
        () if head.get(64..68) == Some(b"\x7f\x10\xda\xbe") => Format::Vdi,
        () if head.get(257..262) == Some(b"ustar") => Format::Ova,
        () if bytes_at(path, 0x8001, 5)? == b"CD001" => Format::Iso,
        () => Format::Raw,
    };
    let is_text = std::str::from_utf8(&head).is_ok_and(|text| text.chars().all(|c| !c.is_control() || c.is_ascii_whitespace()));
    if known == Format::Raw && is_text {
        let what = if head.starts_with(b"<") { "an HTML or XML page" } else { "a text" };
        return Err(
            Error::invalid(format!("the file is {what}, not a disk image")).hint("look into it: a download may have brought an error page")
        );
    }
    Ok(known)
}

fn bytes_at(path: &Path, offset: u64, count: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; count];
    let read = File::open(path)
        .and_then(|f| f.read_at(&mut bytes, offset))
        .map_err(|e| Error::refused(format!("cannot read {}: {e}", path.display())))?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Partition types (UEFI 2.10 table 5.7; GPT on disk is mixed-endian).
const ESP: [u8; 16] = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const BIOS_BOOT: [u8; 16] = [0x48, 0x61, 0x68, 0x21, 0x49, 0x64, 0x6f, 0x6e, 0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49];
/// Entries of a GPT: 128 of 128 bytes, from the third sector.
pub const HEAD_BYTES: usize = 34 * 512;

/// What the disk boots with, from its first [`HEAD_BYTES`]; `Auto` when it does not tell.
pub fn firmware(head: &[u8]) -> Firmware {
    let boot_code = head.get(..440).is_some_and(|code| code.iter().any(|b| *b != 0));
    let signed = head.get(510..512) == Some(b"\x55\xaa");
    if head.get(512..520) == Some(b"EFI PART") {
        let types: Vec<&[u8]> = head[1024.min(head.len())..].chunks_exact(128).map(|entry| &entry[..16]).collect();
        if types.iter().any(|t| *t == ESP) {
            return Firmware::Uefi;
        }
        if boot_code || types.iter().any(|t| *t == BIOS_BOOT) {
            return Firmware::Bios;
        }
        return Firmware::Auto;
    }
    let esp_in_mbr = (0..4).any(|n| head.get(446 + n * 16 + 4) == Some(&0xef));
    match (signed, esp_in_mbr, boot_code) {
        (true, true, _) => Firmware::Uefi,
        (true, false, true) => Firmware::Bios,
        _ => Firmware::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        file
    }

    #[test]
    fn formats_are_known_by_their_content() {
        let check = |bytes: &[u8], expected: Format| assert_eq!(format(written(bytes).path()), Ok(expected));
        check(b"QFI\xfb1234", Format::Qcow2);
        check(b"KDMV", Format::Vmdk);
        check(b"vhdxfile", Format::Vhdx);
        check(&[0; 4096], Format::Raw);
        let mut iso = vec![0; 0x8006];
        iso[0x8001..].copy_from_slice(b"CD001");
        check(&iso, Format::Iso);
    }

    #[test]
    fn what_is_compressed_or_points_elsewhere_is_refused() {
        for bytes in [
            &b""[..],
            b"\x1f\x8bxx",
            b"junk\n",
            b"<!DOCTYPE html>\n<title>404</title>",
            b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0",
        ] {
            assert!(format(written(bytes).path()).is_err());
        }
    }

    #[test]
    fn firmware_is_read_from_the_partition_table() {
        let mut gpt = vec![0; HEAD_BYTES];
        gpt[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(firmware(&gpt), Firmware::Auto);
        gpt[1024..1040].copy_from_slice(&BIOS_BOOT);
        assert_eq!(firmware(&gpt), Firmware::Bios);
        gpt[1152..1168].copy_from_slice(&ESP);
        assert_eq!(firmware(&gpt), Firmware::Uefi);
        assert_eq!(firmware(&[]), Firmware::Auto);
    }
}
