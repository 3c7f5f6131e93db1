//! What must last: jobs, done together in one transaction.

use std::time::SystemTime;

use rusqlite::params;

use super::content::{self, Stored};
use super::draft::{Draft, HandleId};
use super::rows::{self, Source};
use super::writers::{Writer, Writers};
use super::{Change, File, Job, Store, Undo, key, nanoseconds};
use crate::name::{Folder, Name};
use crate::refusal::Refusal;

impl Store {
    /// Does the jobs in one transaction; answers each. What is answered `Ok` is durable.
    ///
    /// If the transaction comes to nothing (the disk is full), each job is tried by itself, so that
    /// a large one does not fail the small ones beside it.
    pub fn commit(&mut self, jobs: &[Job]) -> Vec<Result<(), Refusal>> {
        let mut answers: Vec<_> = jobs.iter().map(|job| self.answer_at_once(job)).collect();
        let open = |answers: &[Option<_>]| -> Vec<Job> {
            let open = jobs.iter().zip(answers).filter(|(_, answer)| answer.is_none());
            open.map(|(job, _)| job.clone()).collect()
        };
        let todo = open(&answers);
        let before = self.ledger.next_seq;
        let done = match self.attempt(&todo) {
            Ok(done) => done,
            Err(refusal) if todo.len() == 1 => vec![Err(refusal)],
            Err(_) => {
                todo.iter().map(|job| self.attempt(std::slice::from_ref(job))?.remove(0)).collect()
            }
        };
        let gaps = answers.iter_mut().filter(|answer| answer.is_none());
        for (gap, answer) in gaps.zip(done) {
            *gap = Some(answer);
        }
        if self.ledger.next_seq > before {
            self.bell.ring(self.ledger.next_seq - 1);
        }
        let answers: Vec<_> =
            answers.into_iter().map(|answer| answer.expect("every job was done")).collect();
        self.tell(jobs, &answers);
        answers
    }

    /// The answer to a job for which nothing is to be done.
    fn answer_at_once(&self, job: &Job) -> Option<Result<(), Refusal>> {
        let (Job::Flush(handle, _) | Job::Fsync(handle)) = job else { return None };
        let Some(open) = self.handles.get(handle) else { return Some(Err(Refusal::Handle)) };
        let file = &self.files[&open.file];
        let (is_told, has_news) = match job {
            // Where somebody else has stored what this one wrote, it is durable. What others wrote
            // is for them to close.
            Job::Flush(handle, process) => {
                let is_theirs = |writers: &Writers| writers.is_closed_by(*handle, *process);
                let is_told = open.refused.as_ref().is_some_and(|refused| is_theirs(&refused.1));
                (is_told, is_theirs(&file.writers))
            }
            _ => (open.refused.is_some(), file.draft.is_some()),
        };
        if let (true, Some((refusal, _))) = (is_told, &open.refused) {
            return Some(Err(refusal.clone()));
        }
        // Nothing that is stored under no name could be found again.
        if has_news && file.is_linked { None } else { Some(Ok(())) }
    }

    /// Gives up what was refused, and sees to it that whoever wrote to it hears of it.
    fn tell(&mut self, jobs: &[Job], answers: &[Result<(), Refusal>]) {
        let refused: Vec<(HandleId, &Refusal)> = jobs
            .iter()
            .zip(answers)
            .filter_map(|(job, answer)| match (job, answer) {
                (Job::Flush(handle, _) | Job::Fsync(handle), Err(refusal)) => {
                    Some((*handle, refusal))
                }
                _ => None,
            })
            .collect();
        for (handle, refusal) in &refused {
            let Some(open) = self.handles.get(handle) else { continue };
            let file = open.file;
            let writers = &self.files[&file].writers;
            if !writers.has(*handle) {
                continue;
            }
            for writer in writers.handles() {
                self.remember((writer, None), &Err((*refusal).clone()));
            }
            self.drop_draft(file);
        }
        // These have just been told.
        for (handle, _) in refused {
            if let Some(open) = self.handles.get_mut(&handle) {
                open.refused = None;
            }
        }
    }

    /// Does jobs in one transaction. An error is the database's: then nothing was done.
    fn attempt(&mut self, jobs: &[Job]) -> Result<Vec<Result<(), Refusal>>, Refusal> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let mut undo = self.undo();
        let done = self.apply_all(jobs, &mut undo).and_then(|answers| {
            self.db.execute_batch("COMMIT")?;
            Ok(answers)
        });
        match &done {
            Ok(_) => self.garbage.clear(),
            Err(_) => {
                self.put_back(undo);
                // A full disk ends a transaction by itself.
                if !self.db.is_autocommit() {
                    self.db.execute_batch("ROLLBACK")?;
                }
            }
        }
        done
    }

    fn apply_all(
        &mut self,
        jobs: &[Job],
        undo: &mut Undo,
    ) -> Result<Vec<Result<(), Refusal>>, Refusal> {
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            self.db.execute_batch("SAVEPOINT job")?;
            let mut own = self.undo();
            match self.apply(job, &mut own) {
                Err(refusal) if refusal.is_failure() => {
                    self.put_back(own);
                    return Err(refusal);
                }
                Err(refusal) => {
                    self.put_back(own);
                    self.db.execute_batch("ROLLBACK TO job; RELEASE job")?;
                    answers.push(Err(refusal));
                }
                Ok(()) => {
                    undo.files.append(&mut own.files);
                    self.db.execute_batch("RELEASE job")?;
                    answers.push(Ok(()));
                }
            }
        }
        for garbage in &self.garbage {
            content::remove(&self.db, *garbage, 0)?;
        }
        Ok(answers)
    }

    fn undo(&self) -> Undo {
        Undo {
            files: Vec::new(),
            ledger: self.ledger,
            next_content: self.next_content,
            garbage: self.garbage.len(),
        }
    }

    fn snapshot(&self, file: u64, undo: &mut Undo) {
        undo.files.push((file, self.files.get(&file).cloned()));
    }

    fn put_back(&mut self, undo: Undo) {
        for (number, old) in undo.files.into_iter().rev() {
            if let Some(now) = self.files.remove(&number)
                && now.is_linked
            {
                self.names.remove(&key(now.folder, &now.name));
            }
            let Some(old) = old else { continue };
            if old.is_linked {
                self.names.insert(key(old.folder, &old.name), number);
            }
            self.files.insert(number, old);
        }
        self.ledger = undo.ledger;
        self.next_content = undo.next_content;
        self.garbage.truncate(undo.garbage);
        self.weigh();
    }

    fn apply(&mut self, job: &Job, undo: &mut Undo) -> Result<(), Refusal> {
        match job {
            Job::Flush(handle, process) => self.store_open((*handle, Some(*process)), undo),
            Job::Fsync(handle) => self.store_open((*handle, None), undo),
            Job::Truncate { file, size } => {
                if !self.files.contains_key(file) {
                    return Err(Refusal::NotFound);
                }
                self.snapshot(*file, undo);
                self.resize(*file, *size)?;
                self.store(*file, None)
            }
            Job::Rename { folder, from, to } => self.rename(*folder, from, to, undo),
            Job::Unlink { folder, name } => {
                let file = self.find_named(*folder, name)?;
                self.detach(file, undo)
            }
            Job::Change { file, change } => {
                if !self.files.contains_key(file) {
                    return Err(Refusal::NotFound);
                }
                self.snapshot(*file, undo);
                self.change(*file, *change)
            }
        }
    }

    fn store_open(&mut self, by: Writer, undo: &mut Undo) -> Result<(), Refusal> {
        let file = self.handles[&by.0].file;
        self.snapshot(file, undo);
        self.store(file, Some(by))
    }

    /// Makes the draft the stored version, and rows of what is new in it.
    ///
    /// `by` is who says that the file is as it should be; where another one still writes the last
    /// line, that line waits for its writer.
    fn store(&mut self, number: u64, by: Option<Writer>) -> Result<(), Refusal> {
        let file = &self.files[&number];
        let Some(draft) = file.draft.as_ref().filter(|_| file.is_linked) else { return Ok(()) };
        let view = file.view(&self.db);
        let size = view.size();
        // Whoever syncs a handle speaks for all that write through it.
        let is_by = |tail: &Writer| {
            by.is_some_and(|by| by.0 == tail.0 && (by.1.is_none() || by.1 == tail.1))
        };
        let other = draft.tail.filter(|tail| !is_by(tail) && file.writers.contains(tail));
        let held = match other {
            Some(_) if file.folder == Folder::Unencrypted && size > 0 => {
                Some(rows::line_start(&view, size)?).filter(|start| *start < size)
            }
            _ => None,
        };
        let mut ledger = self.ledger;
        let source = Source {
            view,
            folder: file.folder,
            name: &file.name,
            written: &draft.written,
            known: file.head.as_ref(),
            held,
            now_ms: nanoseconds(SystemTime::now()) / 1_000_000,
        };
        let made = source.rows(&mut ledger)?;
        let content = content::settle(&self.db, file.stored, draft, self.next_content)?;
        let stored = Stored { content, size, has_header: made.has_header };
        self.write_row(number, file, stored)?;
        self.ledger = ledger;
        self.next_content = self.next_content.max(content + 1);
        let file = self.file_mut(number);
        file.stored = Some(stored);
        file.head = made.head;
        let tail = file.draft.take().and_then(|draft| draft.tail).filter(|_| held.is_some());
        file.writers.retain(|writer| Some(*writer) == tail);
        if let Some(start) = held {
            let mut draft = Draft { tail, ..Draft::over(size) };
            draft.written.add(start, size);
            file.draft = Some(draft);
        }
        self.weigh();
        Ok(())
    }

    fn write_row(&self, number: u64, file: &File, stored: Stored) -> Result<(), Refusal> {
        let whole = |n: u64| i64::try_from(n).expect("limits are far below");
        self.db
            .prepare_cached(
                "INSERT INTO \"kpi/files\"
                     (id, folder, name, mode, uid, gid, mtime_ns, content, size, has_header)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (id) DO UPDATE SET
                     name = ?3, mode = ?4, uid = ?5, gid = ?6, mtime_ns = ?7, content = ?8,
                     size = ?9, has_header = ?10",
            )?
            .execute(params![
                whole(number),
                file.folder.as_str(),
                file.name.as_str(),
                file.owner.mode,
                file.owner.uid,
                file.owner.gid,
                nanoseconds(file.modified),
                whole(stored.content),
                whole(stored.size),
                stored.has_header,
            ])?;
        Ok(())
    }

    fn rename(
        &mut self,
        folder: Folder,
        from: &Name,
        to: &Name,
        undo: &mut Undo,
    ) -> Result<(), Refusal> {
        let number = self.find_named(folder, from)?;
        if from == to {
            return Ok(());
        }
        match self.names.get(&key(folder, to)).copied() {
            Some(there) if there == number => {}
            Some(there) if self.files[&there].name == *to => self.detach(there, undo)?,
            Some(there) => {
                return Err(Refusal::NameCase(self.files[&there].name.as_str().to_owned()));
            }
            None => {}
        }
        self.snapshot(number, undo);
        self.names.remove(&key(folder, from));
        self.names.insert(key(folder, to), number);
        let file = self.file_mut(number);
        file.name = to.clone();
        file.changed = SystemTime::now();
        // Under its new name all of it is new.
        file.head = None;
        let size = file.size();
        file.draft().written.add(0, size);
        self.store(number, None)
    }

    /// Takes a file's name away. It lives on while it is open.
    fn detach(&mut self, number: u64, undo: &mut Undo) -> Result<(), Refusal> {
        self.snapshot(number, undo);
        self.db
            .prepare_cached("DELETE FROM \"kpi/files\" WHERE id = ?1")?
            .execute([i64::try_from(number).expect("few files")])?;
        let file = self.file_mut(number);
        file.is_linked = false;
        file.changed = SystemTime::now();
        let (place, handles) = (key(file.folder, &file.name), file.handles);
        self.names.remove(&place);
        if handles == 0 {
            self.remove_from_memory(number);
        }
        Ok(())
    }

    fn change(&mut self, number: u64, change: Change) -> Result<(), Refusal> {
        let file = self.file_mut(number);
        file.owner.mode = change.mode.unwrap_or(file.owner.mode) & 0o7777;
        file.owner.uid = change.uid.unwrap_or(file.owner.uid);
        file.owner.gid = change.gid.unwrap_or(file.owner.gid);
        file.modified = change.modified.unwrap_or(file.modified);
        file.changed = SystemTime::now();
        let file = &self.files[&number];
        // What was never stored has no row yet, and gets it with its first flush.
        match file.stored.filter(|_| file.is_linked) {
            Some(stored) => self.write_row(number, file, stored),
            None => Ok(()),
        }
    }
}
