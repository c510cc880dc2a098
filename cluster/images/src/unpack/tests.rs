use std::{
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt},
    process::Command,
};

use tar::{Builder, EntryType, Header};

use super::*;

/// A layer as a test writes it.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, mode: u32, content: &[u8], link: Option<&str>) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(4321);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Written by hand: the crate refuses to write the names that these tests are about.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(link) = link {
            header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, 0o644, content.as_bytes(), None)
    }

    fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, b"", None)
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, b"", Some(to))
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name, 0o644, b"", Some(to))
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn unpack(self, to: &Path, lowers: &[PathBuf]) -> Result<Unpacked, ImageError> {
        let tar = self.bytes();
        unpack_bytes(&tar, &Digest::of(&tar), to, lowers)
    }
}

fn unpack_bytes(
    bytes: &[u8],
    diff_id: &Digest,
    to: &Path,
    lowers: &[PathBuf],
) -> Result<Unpacked, ImageError> {
    let blob = to.with_extension("tar");
    fs::write(&blob, bytes).unwrap();
    unpack(&blob, to, lowers, diff_id, Rights::of_this_process())
}

fn need_root() {
    assert!(
        Rights::of_this_process().root,
        "this test needs root of the initial user namespace (devices, owners, mounts): run it as root"
    );
}

#[test]
fn entries_become_files_with_all_their_attributes() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("l");
    let mut layer = Layer::new()
        .entry(EntryType::Directory, "./", 0o711, b"", None)
        .folder("bin/")
        .entry(EntryType::Regular, "bin/su", 0o4755, b"su", None)
        .symlink("bin/sh", "/bin/su")
        .hard_link("bin/doas", "bin/su")
        .entry(EntryType::Fifo, "fifo", 0o600, b"", None);
    layer
        .0
        .append_pax_extensions([
            ("SCHILY.xattr.user.k", &b"v"[..]),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .unwrap();
    let unpacked = layer.file("tagged", "x").unpack(&to, &[]).unwrap();
    assert_eq!(unpacked, Unpacked { depends_on_lower: false });
    let meta = |name: &str| fs::symlink_metadata(to.join(name)).unwrap();
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(meta("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(
        (meta("bin/su").uid(), meta("bin/su").gid(), meta("bin/su").mtime()),
        (1234, 4321, 1_000_000_000)
    );
    assert_eq!(meta("bin").mtime(), 1_000_000_000);
    assert_eq!(meta("bin/su").ino(), meta("bin/doas").ino());
    assert_eq!(fs::read_link(to.join("bin/sh")).unwrap(), Path::new("/bin/su"));
    assert_eq!((meta("bin/sh").uid(), meta("bin/sh").mtime()), (1234, 1_000_000_000));
    assert!(meta("fifo").file_type().is_fifo());
    let mut value = [0_u8; 8];
    let n = rustix::fs::lgetxattr(to.join("tagged"), "user.k", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"v");
    assert!(rustix::fs::lgetxattr(to.join("tagged"), "trusted.overlay.opaque", &mut value[..]).is_err());
}

#[test]
fn overlayfs_shows_what_the_layers_say() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    Layer::new()
        .folder("a")
        .file("a/gone", "1")
        .file("a/kept", "1")
        .folder("b")
        .file("b/old", "1")
        .folder("c")
        .file("c/old", "1")
        .unpack(&at("1"), &[])
        .unwrap();
    Layer::new()
        .folder("a")
        .file("a/.wh.gone", "")
        .folder("b")
        .file("b/new", "2")
        .file("b/.wh..wh..opq", "")
        .file(".wh.c", "")
        // A whiteout beside an entry of the same name in the same layer means the layers below.
        .file("d", "2")
        .file(".wh.d", "")
        .file(".wh..wh.plnk", "")
        .unpack(&at("2"), &[at("1")])
        .unwrap();
    // The folder comes back, empty of what it had.
    Layer::new().folder("c").file("c/new", "3").unpack(&at("3"), &[at("2"), at("1")]).unwrap();
    fs::create_dir(at("m")).unwrap();
    let lowers = format!("lowerdir={}:{}:{}", at("3").display(), at("2").display(), at("1").display());
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &lowers])
        .arg(at("m"))
        .status()
        .unwrap();
    assert!(mounted.success(), "overlayfs cannot be mounted here, which this test needs");
    let list = |name: &str| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(at("m").join(name))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let seen = ["", "a", "b", "c"].map(list);
    assert!(Command::new("umount").arg(at("m")).status().unwrap().success());
    assert_eq!(
        seen,
        [vec!["a", "b", "c", "d"], vec!["kept"], vec!["new"], vec!["new"]]
            .map(|v| v.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    );
}

#[test]
fn nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "safe").unwrap();
    let out = outside.to_str().unwrap();
    let attacks: Vec<(&str, Layer)> = vec![
        ("dots", Layer::new().file("../outside/evil", "x")),
        ("dots inside", Layer::new().file("a/../../outside/evil", "x")),
        ("link to dots", Layer::new().hard_link("l", "../outside/victim")),
        ("link through symlink", Layer::new().symlink("s", out).hard_link("l", "s/victim")),
        ("whiteout of dots", Layer::new().file("a/.wh...", "")),
        ("whiteout of nothing", Layer::new().file(".wh.", "")),
        ("file as folder", Layer::new().file("a", "x").file("a/b", "x")),
        ("symlink loop", Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "x")),
    ];
    for (n, (name, layer)) in attacks.into_iter().enumerate() {
        let result = layer.unpack(&dir.path().join(n.to_string()), &[]);
        assert!(matches!(result, Err(ImageError::Invalid { .. })), "{name}: {result:?}");
    }
    // These are not refused: the path means something inside, as it would in a container.
    let inside = dir.path().join("inside");
    Layer::new()
        .symlink("abs", out)
        .file("abs/evil", "x")
        .symlink("up", "../../../../..")
        .file("up/evil", "x")
        .symlink("file", &format!("{out}/victim"))
        .file("file", "replaced")
        .file("/rooted", "x")
        .unpack(&inside, &[])
        .unwrap();
    assert!(inside.join(out.trim_start_matches('/')).join("evil").is_file());
    assert!(inside.join("evil").is_file() && inside.join("rooted").is_file());
    assert_eq!(fs::read_to_string(inside.join("file")).unwrap(), "replaced");
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["victim"]);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "safe");
}

#[test]
fn missing_folders_are_as_the_layers_below_have_them() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    Layer::new()
        .entry(EntryType::Directory, "tmp", 0o1777, b"", None)
        .folder("usr")
        .folder("usr/lib")
        .symlink("lib", "usr/lib")
        .file("usr/lib/base", "base")
        .unpack(&at("1"), &[])
        .unwrap();
    let unpacked = Layer::new()
        .file("tmp/x", "x")
        .file("lib/y", "y")
        .hard_link("usr/lib/linked", "usr/lib/base")
        .unpack(&at("2"), &[at("1")])
        .unwrap();
    assert_eq!(unpacked, Unpacked { depends_on_lower: true });
    assert_eq!(fs::metadata(at("2/tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert!(!at("2/lib").exists(), "the symlink below must not be hidden");
    assert_eq!(fs::read_to_string(at("2/usr/lib/y")).unwrap(), "y");
    assert_eq!(fs::read_to_string(at("2/usr/lib/linked")).unwrap(), "base");
}

#[test]
fn a_layer_is_what_its_diff_id_says_however_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Layer::new().file("a", "content").bytes();
    let diff_id = Digest::of(&tar);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar[..700]).unwrap();
    let mut gzip = gzip.finish().unwrap();
    // A second member, as pigz and estargz write them.
    let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    second.write_all(&tar[700..]).unwrap();
    gzip.extend(second.finish().unwrap());
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for (n, bytes) in [&tar, &gzip, &zstd].into_iter().enumerate() {
        let to = dir.path().join(n.to_string());
        unpack_bytes(bytes, &diff_id, &to, &[]).unwrap();
        assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "content");
    }
    let wrong = unpack_bytes(&tar, &Digest::of(b"other"), &dir.path().join("w"), &[]);
    assert!(matches!(wrong, Err(ImageError::Corrupt { .. })), "{wrong:?}");
    let cut = unpack_bytes(&gzip[..gzip.len() / 2], &diff_id, &dir.path().join("c"), &[]);
    assert!(cut.is_err());
}
