package shelf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters"
)

// Fill makes what a driver needs in the directory of a new snapshot, whose FS exists and is
// empty. parents are the nearest first.
type Fill func(ctx context.Context, sn Snapshot, parents []Snapshot) error

// Make makes a snapshot of r's kind, key, parent and labels, and returns it with its parents;
// if one of that kind, key and parent is there, that one. With volatile nothing is synced.
func (s *Shelf) Make(ctx context.Context, r Record, volatile bool, fill Fill) (_ Snapshot, _ []Snapshot, err error) {
	if err := checkKeys(r.Parent, r.Key); err != nil {
		return Snapshot{}, nil, err
	}
	if volatile {
		r.Boot = s.boot
	}
	r.Labels = maps.Clone(r.Labels)
	release, err := s.hold(ctx, r.Key)
	if err != nil {
		return Snapshot{}, nil, err
	}
	defer release()
	old, parents, err := s.admit(r)
	if err != nil || old.ID != "" {
		return old, parents, err
	}
	sn, err := s.build(ctx, r, parents, fill)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.lean(r.Parent, -1)
		return Snapshot{}, nil, err
	}
	s.entries[r.Key] = &entry{Snapshot: sn}
	return sn, parents, nil
}

func checkKeys(parent string, keys ...string) error {
	if parent != "" {
		keys = append(keys, parent)
	}
	for _, k := range keys {
		if err := snapshotters.CheckKey(k); err != nil {
			return err
		}
	}
	return nil
}

// admit says whether r may be made, and leans it on its parent; or returns the one that is there.
func (s *Shelf) admit(r Record) (Snapshot, []Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.entries[r.Key]; ok {
		if e.Kind != r.Kind || e.Parent != r.Parent {
			return Snapshot{}, nil, fmt.Errorf("snapshot %q is there, %s on %q: %w", r.Key, e.Kind, e.Parent, errdefs.ErrAlreadyExists)
		}
		parents, err := s.chain(e.Parent)
		if err != nil {
			return Snapshot{}, nil, fmt.Errorf("snapshot %q lost what it stands on: %s: %w", r.Key, err.Error(), errdefs.ErrDataLoss)
		}
		return e.Snapshot, parents, nil
	}
	parents, err := s.chain(r.Parent)
	if err != nil {
		return Snapshot{}, nil, err
	}
	s.lean(r.Parent, 1)
	return Snapshot{}, parents, nil
}

// build makes the directory, the record last.
func (s *Shelf) build(ctx context.Context, r Record, parents []Snapshot, fill Fill) (_ Snapshot, err error) {
	sn := Snapshot{Record: r}
	if sn.ID, err = s.ids.take(); err != nil {
		return sn, err
	}
	dir := s.root + "/s/" + sn.ID
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return sn, &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	defer func() {
		if err != nil {
			s.discard(sn.ID)
		}
	}()
	s.step("make.dir")
	if err := unix.Mkdir(dir+"/"+fsName, 0o755); err != nil {
		return sn, &fs.PathError{Op: "mkdir", Path: dir + "/" + fsName, Err: err}
	}
	s.step("make.fs")
	if err := fill(ctx, sn, parents); err != nil {
		return sn, err
	}
	s.step("make.filled")
	if err := writeRecord(dir, r, s.step); err != nil {
		return sn, err
	}
	if !r.Volatile() {
		if err := s.shelf.Sync(); err != nil {
			return sn, err
		}
	}
	s.step("make.done")
	return sn, nil
}

// discard moves a directory to the trash. Where that fails the next Open does it: the record may be there
// already, so it goes first.
func (s *Shelf) discard(id string) {
	if err := os.Rename(s.path(shelfName, id), s.path(trashName, id)); err != nil {
		s.log.Error("discard a snapshot that could not be made", "id", id, "err", err)
		if err := os.Remove(s.path(shelfName, id, recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Error("discard the record of a snapshot that could not be made", "id", id, "err", err)
		}
		return
	}
	s.sweeper.wake()
}

// Settle makes what was written to sn fit to stand on parents. It need not make it durable.
type Settle func(ctx context.Context, sn Snapshot, parents []Snapshot) error

// Commit turns the active snapshot key into the committed snapshot name: settle, if it is not nil, then sync and count, and
// when all that is on the disk the record. With rebase, what stands on nothing may be hung on parent.
func (s *Shelf) Commit(ctx context.Context, key, name, parent string, rebase bool, settle Settle) error {
	if err := checkKeys(parent, key, name); err != nil {
		return err
	}
	if key == name {
		return fmt.Errorf("snapshot %q cannot be committed under its own key: %w", key, errdefs.ErrInvalidArgument)
	}
	release, err := s.hold(ctx, key, name)
	if err != nil {
		return err
	}
	defer release()
	old, parents, done, err := s.admitCommit(key, name, parent, rebase)
	if err != nil {
		return err
	}
	if done {
		return s.remove(key)
	}
	next := old
	next.Record = Record{Key: name, Kind: Committed, Labels: old.Labels}
	if len(parents) > 0 {
		next.Parent = parents[0].Key
	}
	if settle != nil {
		err = settle(ctx, old, parents)
	}
	if err == nil {
		next.Usage, err = s.finish(ctx, s.FS(old))
	}
	if err == nil {
		s.step("commit.settled")
		err = replaceRecord(s.path(shelfName, old.ID), next.Record, s.step)
	}
	if err == nil {
		err = s.shelf.Sync() // a volatile one's directory was not
	}
	s.step("commit.recorded")
	s.mu.Lock()
	if err != nil {
		s.lean(next.Parent, -1)
		s.mu.Unlock()
		return err
	}
	s.lean(old.Parent, -1)
	delete(s.entries, key)
	s.entries[name] = &entry{Snapshot: next}
	s.mu.Unlock()
	if err := s.dropWork(old.ID); err != nil { // the next Open tries again
		s.log.Warn("drop the work directory of a committed snapshot", "id", old.ID, "err", err)
	}
	s.step("commit.done")
	s.sweeper.wake()
	return nil
}

// admitCommit says whether key may become name, and leans it on what will be its parent; done says
// that name is there already and key is to be dropped.
func (s *Shelf) admitCommit(key, name, parent string, rebase bool) (_ Snapshot, _ []Snapshot, done bool, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if ok && e.Kind != Active {
		return Snapshot{}, nil, false, fmt.Errorf("snapshot %q is not writable but a %s one: %w", key, e.Kind, errdefs.ErrFailedPrecondition)
	}
	if ok && parent == "" {
		parent = e.Parent
	}
	if n, there := s.entries[name]; there {
		if n.Kind != Committed || n.Parent != parent && (ok || parent != "") {
			return Snapshot{}, nil, false, fmt.Errorf("snapshot %q is there, %s on %q: %w", name, n.Kind, n.Parent, errdefs.ErrAlreadyExists)
		}
		return Snapshot{}, nil, true, nil
	}
	switch {
	case !ok:
		return Snapshot{}, nil, false, fmt.Errorf("snapshot %q is not there: %w", key, errdefs.ErrNotFound)
	case parent != e.Parent && !(rebase && e.Parent == ""):
		return Snapshot{}, nil, false, fmt.Errorf("snapshot %q was prepared on %q and cannot be hung on %q: %w", key, e.Parent, parent, errdefs.ErrFailedPrecondition)
	}
	if err := s.Alive(e.Snapshot); err != nil {
		return Snapshot{}, nil, false, err
	}
	parents, err := s.chain(parent)
	if err != nil {
		return Snapshot{}, nil, false, err
	}
	s.lean(parent, 1)
	return e.Snapshot, parents, false, nil
}

// Alive returns an error of class DataLoss if sn was volatile and the machine was started again since: what
// was written to it may be there in part.
func (s *Shelf) Alive(sn Snapshot) error {
	if sn.Volatile() && sn.Boot != s.boot {
		return fmt.Errorf("snapshot %q was made volatile and the machine was started again since: remove it: %w", sn.Key, errdefs.ErrDataLoss)
	}
	return nil
}

// Remove forgets a snapshot; its space comes back soon after.
func (s *Shelf) Remove(ctx context.Context, key string) error {
	if err := snapshotters.CheckKey(key); err != nil {
		return err
	}
	release, err := s.hold(ctx, key)
	if err != nil {
		return err
	}
	defer release()
	return s.remove(key)
}

// remove is Remove; key is held.
func (s *Shelf) remove(key string) error {
	s.mu.Lock()
	e, ok := s.entries[key]
	switch {
	case !ok:
		s.mu.Unlock()
		return nil
	case e.children > 0:
		child := s.childOf(key)
		s.mu.Unlock()
		return fmt.Errorf("snapshot %q is stood on, by %s: %w", key, child, errdefs.ErrFailedPrecondition)
	}
	e.going = true
	s.mu.Unlock()
	s.step("remove.marked")
	// Not synced: a power cut may bring the snapshot back whole, and who removed it will see it in
	// All. Within a directory renames keep their order, so a parent is never gone before its child.
	err := os.Rename(s.path(shelfName, e.ID), s.path(trashName, e.ID))
	s.step("remove.renamed")
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		e.going = false
		return err
	}
	s.lean(e.Parent, -1)
	delete(s.entries, key)
	s.sweeper.wake()
	return nil
}

// childOf names one that stands on key. mu is held.
func (s *Shelf) childOf(key string) string {
	for k, e := range s.entries {
		if e.Parent == key {
			return fmt.Sprintf("%q", k)
		}
	}
	return "one that is being made"
}

// finish makes a layer durable and, while the disk is busy, counts it: it will never be cheaper, as the names are still in
// memory. One that cannot be counted has no usage yet.
func (s *Shelf) finish(ctx context.Context, dir string) (*Usage, error) {
	counted := make(chan *Usage, 1)
	go func() {
		u, err := du(ctx, dir)
		if ctx.Err() != nil {
			counted <- nil
			return
		}
		if err != nil {
			s.log.Warn("count a layer", "dir", dir, "err", err)
			counted <- nil
			return
		}
		counted <- &u
	}()
	err := s.Sync(ctx, dir)
	return <-counted, err
}

// Sync writes everything that was written to the file system of dir to its device (syncfs(2)). If ctx
// ends first the caller is let go, and the kernel finishes alone.
func (s *Shelf) Sync(ctx context.Context, dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	s.waits.Go(func() {
		done <- errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	})
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("sync the file system of %s: %w", dir, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sync the file system of %s: %w", dir, Ended(ctx))
	}
}
