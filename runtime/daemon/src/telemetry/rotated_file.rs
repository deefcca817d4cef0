//! A file that is rotated by its size.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Appends lines to `path`; full files are `path.1` (the newest), `path.2` and so on.
pub(super) struct RotatedFile {
    path: PathBuf,
    max_size: u64,
    keep: usize,
    /// None after a failure: the last line may be incomplete.
    file: Option<File>,
    size: u64,
}

impl RotatedFile {
    pub(super) fn open(path: PathBuf, max_size: u64, keep: usize) -> io::Result<Self> {
        let mut this = Self {
            path,
            max_size,
            keep,
            file: None,
            size: 0,
        };
        this.file = Some(this.reopen()?);
        Ok(this)
    }

    /// Appends a line, which ends with a line feed, whole or not at all.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        let mut file = self.current()?;
        if self.size > 0 && self.size.saturating_add(line.len() as u64) > self.max_size {
            drop(file);
            self.rotate()?;
            file = self.reopen()?;
        }
        if let Err(error) = file.write_all(line.as_bytes()) {
            // Half a line would make two lines unreadable. If this fails too, the next line begins after a line feed.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        self.size += line.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// The file at the path, reopened if the open one was moved or removed.
    fn current(&mut self) -> io::Result<File> {
        if let Some(file) = self.file.take()
            && let Ok(there) = std::fs::metadata(&self.path)
            && is_same(&file.metadata()?, &there)
        {
            self.size = there.len();
            return Ok(file);
        }
        self.reopen()
    }

    fn reopen(&mut self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let mut file = options.open(&self.path)?;
        self.size = file.metadata()?.len();
        if self.size > 0 && !ends_with_line_feed(&mut file)? {
            file.write_all(b"\n")?;
            self.size += 1;
        }
        Ok(file)
    }

    /// Renames the full files, each to the next number. It may be retried after a failure: files move up to the first
    /// gap only.
    fn rotate(&mut self) -> io::Result<()> {
        if self.keep == 0 {
            return if_there(std::fs::remove_file(&self.path));
        }
        if !self.path.try_exists()? {
            return Ok(());
        }
        let without_gap = (1..self.keep).take_while(|n| self.aside(*n).exists()).count();
        for n in (1..=without_gap).rev() {
            if_there(std::fs::rename(self.aside(n), self.aside(n + 1)))?;
        }
        if_there(std::fs::rename(&self.path, self.aside(1)))
    }

    fn aside(&self, n: usize) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        Path::new(&name).to_path_buf()
    }
}

/// Treats a file that does not exist as moved.
fn if_there(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(unix)]
fn is_same(open: &Metadata, there: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// On these systems an open file can't be renamed.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// Whether the file ends with a whole line: a process that was killed may have left a part of one.
fn ends_with_line_feed(file: &mut File) -> io::Result<bool> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_set_aside_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let mut file = RotatedFile::open(path.clone(), 10, 2).expect("a file");
        for line in ["one 1\n", "two 2\n", "three 3\n", "four 4\n"] {
            file.append(line).expect("a line");
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("audit.jsonl").as_deref(), Some("four 4\n"));
        assert_eq!(read("audit.jsonl.1").as_deref(), Some("three 3\n"));
        assert_eq!(read("audit.jsonl.2").as_deref(), Some("two 2\n"));
        assert_eq!(read("audit.jsonl.3"), None);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            for name in ["audit.jsonl", "audit.jsonl.1"] {
                let mode = folder
                    .path()
                    .join(name)
                    .metadata()
                    .expect("a file")
                    .permissions()
                    .mode();
                assert_eq!(mode & 0o777, 0o600, "{name}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_somebody_takes_away_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).ok();
        let mut file = RotatedFile::open(path.clone(), 10, 3).expect("a file");
        for line in ["one 1\n", "two 2\n", "three 3\n"] {
            file.append(line).expect("a line");
        }
        std::fs::remove_file(&path).expect("a file");
        file.append("four 4\n").expect("a line");
        assert_eq!(read("audit.jsonl").as_deref(), Some("four 4\n"));
        std::fs::rename(&path, folder.path().join("elsewhere")).expect("a file");
        file.append("five 5\n").expect("a line");
        assert_eq!(read("audit.jsonl").as_deref(), Some("five 5\n"));
        assert_eq!(read("elsewhere").as_deref(), Some("four 4\n"));
        // Nothing was full meanwhile, so nothing was set aside.
        assert_eq!(read("audit.jsonl.1").as_deref(), Some("two 2\n"));
        assert_eq!(read("audit.jsonl.2").as_deref(), Some("one 1\n"));
        assert_eq!(read("audit.jsonl.3"), None);
    }

    /// As it is when setting aside fails half-way, and is tried again with every line.
    #[test]
    fn what_is_set_aside_moves_up_to_the_first_gap() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let mut file = RotatedFile::open(path, 10, 3).expect("a file");
        for line in ["one 1\n", "two 2\n", "three 3\n"] {
            file.append(line).expect("a line");
        }
        let aside = |n: usize| folder.path().join(format!("audit.jsonl.{n}"));
        std::fs::remove_file(aside(1)).expect("a file");
        file.append("four 4\n").expect("a line");
        assert_eq!(std::fs::read(aside(1)).expect("a file"), b"three 3\n");
        assert_eq!(std::fs::read(aside(2)).expect("a file"), b"one 1\n");
    }

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"half").expect("a file");
        let mut file = RotatedFile::open(path.clone(), 100, 0).expect("a file");
        file.append("whole\n").expect("a line");
        assert_eq!(
            std::fs::read_to_string(&path).expect("a file"),
            "{\"half\nwhole\n"
        );
    }
}
