//! A root folder in memory, written as a layer that depends on nothing but its content.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{ImageError, error::Context};

enum Node {
    Folder,
    Bytes(Vec<u8>),
    File(PathBuf, u64),
    Link(PathBuf),
}

pub(super) struct RootFs {
    /// By path without the leading slash, so that a folder comes before what is in it.
    nodes: BTreeMap<String, (u32, Node)>,
}

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Where distributions keep the bundle of CA certificates.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl RootFs {
    pub(super) fn empty() -> Self {
        Self { nodes: BTreeMap::new() }
    }

    /// Users, `/tmp`, and this machine's CA certificates if it has any.
    pub(super) fn new() -> Self {
        let mut root = Self::empty();
        root.add_users();
        if let Some(bundle) = BUNDLES.iter().find_map(|path| fs::read(path).ok()) {
            // The first of these is where OpenSSL, Go and rustls look on most systems.
            let added = root.add_bytes("/etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
            debug_assert!(added.is_ok());
        }
        root
    }

    pub(super) fn add_users(&mut self) {
        for (path, content) in
            [("/etc/passwd", PASSWD), ("/etc/group", GROUP), ("/etc/nsswitch.conf", NSSWITCH)]
        {
            let added = self.add_bytes(path, 0o644, content.as_bytes().to_vec());
            debug_assert!(added.is_ok());
        }
        self.nodes.insert("tmp".into(), (0o1777, Node::Folder));
        self.nodes.insert("home".into(), (0o755, Node::Folder));
        self.nodes.insert("root".into(), (0o700, Node::Folder));
    }

    pub(super) fn add_bytes(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), ImageError> {
        let path = self.parents(path)?;
        self.nodes.insert(path, (mode, Node::Bytes(bytes)));
        Ok(())
    }

    /// The content of `from`, followed if it is a symlink.
    pub(super) fn add_file(&mut self, path: &str, mode: u32, from: &Path) -> Result<(), ImageError> {
        let size = fs::metadata(from).at("look at", from)?.len();
        let path = self.parents(path)?;
        self.nodes.insert(path, (mode, Node::File(from.to_path_buf(), size)));
        Ok(())
    }

    /// All of a folder, symlinks as they are. Version control and the like stay out.
    pub(super) fn add_folder(&mut self, path: &str, from: &Path) -> Result<(), ImageError> {
        let own = self.parents(path)?;
        self.nodes.insert(own, (0o755, Node::Folder));
        for entry in fs::read_dir(from).at("list", from)? {
            let entry = entry.at("list", from)?;
            let name = entry.file_name().into_string().map_err(|n| {
                ImageError::Build(format!("the name {n:?} in {} is not UTF-8", from.display()))
            })?;
            if matches!(name.as_str(), ".git" | ".hg" | ".svn") {
                continue;
            }
            let (inside, place) = (format!("{path}/{name}"), entry.path());
            let meta = fs::symlink_metadata(&place).at("look at", &place)?;
            if meta.is_dir() {
                self.add_folder(&inside, &place)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&place).at("read symlink", &place)?;
                let inside = self.parents(&inside)?;
                self.nodes.insert(inside, (0o777, Node::Link(target)));
            } else if meta.is_file() {
                // Whether it is executable is content; who else may read it here is not.
                let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
                self.add_file(&inside, mode, &place)?;
            }
        }
        Ok(())
    }

    /// Adds the folders above `path`, and gives its key.
    fn parents(&mut self, path: &str) -> Result<String, ImageError> {
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        if !path.starts_with('/') || parts.is_empty() || parts.iter().any(|p| matches!(*p, "." | "..")) {
            return Err(ImageError::Build(format!(
                "{path:?} must be an absolute path in the image, without '.' and '..'"
            )));
        }
        for n in 1..parts.len() {
            self.nodes.entry(parts[..n].join("/")).or_insert((0o755, Node::Folder));
        }
        Ok(parts.join("/"))
    }

    /// Writes the layer.
    pub(super) fn write(self, to: &mut impl Write) -> Result<(), ImageError> {
        let mut tar = tar::Builder::new(to);
        let broken = |path: &str| format!("cannot pack {path}");
        for (path, (mode, node)) in &self.nodes {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(0);
            match node {
                Node::Folder => {
                    header.set_entry_type(tar::EntryType::Directory);
                    tar.append_data(&mut header, format!("{path}/"), io::empty()).context(|| broken(path))?;
                }
                Node::Bytes(bytes) => {
                    header.set_size(bytes.len() as u64);
                    tar.append_data(&mut header, path, bytes.as_slice()).context(|| broken(path))?;
                }
                Node::File(from, size) => {
                    header.set_size(*size);
                    let file = fs::File::open(from).at("open", from)?;
                    let reader = Exact { inner: io::BufReader::with_capacity(256 << 10, file), left: *size };
                    tar.append_data(&mut header, path, reader).context(|| broken(path))?;
                }
                Node::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    tar.append_link(&mut header, path, target).context(|| broken(path))?;
                }
            }
        }
        tar.into_inner().map(drop).context(|| broken("the layer"))
    }
}

/// As many bytes as the header says, even if the file changes meanwhile: fewer are an error, more are left.
struct Exact<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = (&mut self.inner).take(self.left).read(buf)?;
        if n == 0 && self.left > 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was packed",
            ));
        }
        self.left -= n as u64;
        Ok(n)
    }
}
