//! The tree of files as the packages have it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Plan, Programs, links, sbom};
use crate::library;
use crate::process::{root, run};

/// The files of the checkout that the packages hold.
const LIST: &str = "systemd/files.txt";
const DOC: &str = "usr/share/doc/phi-edge";
const MAINTAINER: &str = "The phi-edge authors <maintainers@phi-edge.invalid>";

/// Lays out `tree` from the beginning.
pub(crate) fn stage(tree: &Path, plan: &Plan, programs: &Programs) -> Result<()> {
    if tree.exists() {
        std::fs::remove_dir_all(tree).with_context(|| format!("{} can't be emptied", tree.display()))?;
    }
    listed(LIST, tree)?;
    let program = tree.join("usr/bin/phi-edge");
    copy(&programs.packaged, &program)?;
    let strip = if programs.packaged == programs.runnable {
        "strip"
    } else {
        "aarch64-linux-gnu-strip"
    };
    run(Command::new(strip).arg(&program)).context("is binutils installed?")?;
    generated_by_program(tree, &programs.runnable)?;
    onnxruntime(tree, plan)?;
    let log = tree.join(DOC).join("changelog.gz");
    compress(changelog(&plan.version)?.as_bytes(), &log)?;
    let sbom = sbom::cyclonedx(plan)?;
    write(&tree.join(DOC).join("sbom.cdx.json"), &sbom)
}

/// Copies what a list of this checkout names into `tree`, and makes links of documents hold there.
pub(crate) fn listed(list: &str, tree: &Path) -> Result<()> {
    let list = root().join(list);
    let text = std::fs::read_to_string(&list).with_context(|| format!("{} can't be read", list.display()))?;
    let mut listed = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
    {
        let mut words = line.split_whitespace();
        let (Some(source), Some(place)) = (words.next(), words.next()) else {
            bail!("{}: a source and a place are needed: {line}", list.display());
        };
        let (optional, source) = source
            .strip_prefix('?')
            .map_or((false, source), |source| (true, source));
        if !optional || root().join(source).exists() {
            listed.push((source.to_owned(), place.to_owned()));
        }
    }
    for (source, place) in &listed {
        let from = root().join(source);
        let to = tree.join(place.trim_start_matches('/'));
        if from.is_dir() {
            copy_all(&from, &to)?;
        } else {
            copy(&from, &to)?;
        }
    }
    for (source, place) in &listed {
        relink(tree, Path::new(source), Path::new(place), &listed)?;
    }
    Ok(())
}

/// Mends the links of a document, or of those directly in a folder.
fn relink(tree: &Path, source: &Path, place: &Path, listed: &links::Listed) -> Result<()> {
    if root().join(source).is_dir() {
        for file in files(&root().join(source))? {
            let name = file.file_name().unwrap_or_default();
            if file.is_file() {
                relink(tree, &source.join(name), &place.join(name), listed)?;
            }
        }
    } else if source.extension().is_some_and(|kind| kind == "md") {
        let text = std::fs::read_to_string(root().join(source))?;
        let to = tree.join(place.strip_prefix("/").unwrap_or(place));
        write(&to, links::packaged(&text, source, place, listed).as_bytes())?;
    }
    Ok(())
}

/// Manual pages and completions.
fn generated_by_program(tree: &Path, program: &Path) -> Result<()> {
    let pages = tree.join("usr/share/man/man1");
    std::fs::create_dir_all(&pages)?;
    run(Command::new(program).arg("manual").arg(&pages))?;
    for page in files(&pages)? {
        run(Command::new("gzip").args(["-9n"]).arg(&page))?;
    }
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/phi-edge"),
        ("zsh", "usr/share/zsh/vendor-completions/_phi-edge"),
        ("fish", "usr/share/fish/vendor_completions.d/phi-edge.fish"),
    ] {
        let output = Command::new(program).args(["completions", shell]).output()?;
        if !output.status.success() {
            bail!("the completions of {shell} can't be made: {}", output.status);
        }
        write(&tree.join(place), &output.stdout)?;
    }
    Ok(())
}

/// The library with the notices of its authors.
fn onnxruntime(tree: &Path, plan: &Plan) -> Result<()> {
    let library = library::fetch(plan.platform)?;
    let name = library.file_name().context("the library has no name")?;
    copy(&library, &tree.join("usr/lib/phi-edge").join(name))?;
    let wheel = library
        .ancestors()
        .nth(2)
        .context("the library lies in no wheel")?;
    let notices = tree.join(DOC).join("onnxruntime");
    copy(&wheel.join("LICENSE"), &notices.join("LICENSE"))?;
    let third_parties = std::fs::read(wheel.join("ThirdPartyNotices.txt"))?;
    compress(&third_parties, &notices.join("ThirdPartyNotices.txt.gz"))
}

/// Debian's form of what CHANGELOG.md says of the newest version.
fn changelog(version: &str) -> Result<String> {
    let date = Command::new("git")
        .current_dir(root())
        .args(["log", "-1", "--format=%cD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .context("git can't tell the date of the last change")?;
    let text = std::fs::read_to_string(root().join("CHANGELOG.md"))?;
    let mut changes: Vec<String> = Vec::new();
    for line in text
        .lines()
        .skip_while(|line| !line.starts_with("## "))
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| !line.trim().is_empty())
    {
        // A change begins with a star, its further lines are indented.
        match (line.strip_prefix("* "), changes.last_mut()) {
            (Some(begins), _) => changes.push(begins.to_owned()),
            (None, Some(change)) => *change = format!("{change} {}", line.trim()),
            (None, None) => {}
        }
    }
    let changes: String = changes.iter().map(|change| wrapped(change)).collect();
    Ok(format!(
        "phi-edge ({version}) unstable; urgency=medium\n\n{changes}\n -- {MAINTAINER}  {}\n",
        date.trim()
    ))
}

/// One change in lines of at most eighty characters.
fn wrapped(change: &str) -> String {
    let mut text = String::from("  *");
    let mut length = text.len();
    for word in change.split_whitespace() {
        if length + 1 + word.len() > 80 {
            text.push_str("\n   ");
            length = 3;
        }
        text.push(' ');
        text.push_str(word);
        length += 1 + word.len();
    }
    text.push('\n');
    text
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(folder)
        .with_context(|| format!("{} can't be read", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        let to = to.join(file.file_name().unwrap_or_default());
        if file.is_dir() {
            copy_all(&file, &to)?;
        } else {
            copy(&file, &to)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::copy(from, to)
        .with_context(|| format!("{} can't be copied to {}", from.display(), to.display()))?;
    Ok(())
}

fn write(to: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(to, bytes).with_context(|| format!("{} can't be written", to.display()))
}

/// Without a date, so that the same input gives the same package.
fn compress(bytes: &[u8], to: &Path) -> Result<()> {
    write(to, b"")?;
    let file = std::fs::File::create(to)?;
    let mut gzip = Command::new("gzip")
        .arg("-9nc")
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("gzip can't be started")?;
    let mut input = gzip.stdin.take().context("gzip takes no input")?;
    std::io::Write::write_all(&mut input, bytes)?;
    drop(input);
    if !gzip.wait()?.success() {
        bail!("gzip failed");
    }
    Ok(())
}
