package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/sentence"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// Checks compares the store with directories, shims, network namespaces, cgroups and snapshots.
func (s *Service) Checks() []check.Check {
	return []check.Check{
		{Name: "containers.directories", Run: s.checkDirectories},
		{Name: "containers.shims", Run: s.checkShims},
		{Name: "containers.namespaces", Run: s.checkNamespaces},
		{Name: "containers.cgroups", Run: s.checkCgroups},
		{Name: "containers.snapshots", Run: s.checkSnapshots},
	}
}

// account is what the store says, at one moment.
type account struct {
	records map[string]*containersv1.Container
	claimed map[string]bool // ids that some operation works on
}

func (s *Service) account() (account, error) {
	a := account{records: map[string]*containersv1.Container{}, claimed: map[string]bool{}}
	err := s.DB.View(func(tx *meta.Tx) error {
		for id, c := range s.t.containers.All(tx) {
			a.records[id] = c
		}
		for _, c := range tx.Claims() {
			if c.GetMode() != meta.Use && slices.Contains([]string{kindContainer, kindShim, kindNetNS}, c.GetRef().GetKind()) {
				a.claimed[c.GetRef().GetKey()] = true
			}
		}
		return tx.Damaged() // what cannot be read must not look like what is not there
	})
	return a, err
}

// idle reports whether nothing of id should be running.
func (a account) idle(id string) bool { return !a.claimed[id] && !alive(a.records[id]) }

var anID = regexp.MustCompile(`^[0-9a-f]{64}$`)

func subject(id string) string { return "container " + meta.Short(id) }

func (s *Service) checkDirectories(_ context.Context, report check.Report) error {
	a, err := s.account()
	if err != nil {
		return err
	}
	kept, err := list(filepath.Join(s.Root, "containers"))
	if err != nil {
		return err
	}
	for _, id := range kept {
		switch {
		case !anID.MatchString(id):
			if !strings.HasPrefix(id, filepath.Base(s.bootFile())) {
				report("file "+s.dir(id), "it is in the directory of the containers, and no container's: take it away", nil)
			}
		case a.records[id] == nil && !a.claimed[id]:
			report(subject(id), "its directory "+s.dir(id)+" is there, its record is not", func(ctx context.Context) error {
				return s.repair(ctx, kindContainer, id, func(context.Context) error { return os.RemoveAll(s.dir(id)) })
			})
		}
	}
	states, err := list(filepath.Join(s.State, "c"))
	if err != nil {
		return err
	}
	for _, id := range states {
		if a.idle(id) {
			report(subject(id), "it does not run, and its state directory "+s.state(id).State+" is there", func(ctx context.Context) error {
				return s.repair(ctx, kindShim, id, func(ctx context.Context) error { return s.end(ctx, id, nil) })
			})
		}
	}
	return nil
}

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// repair drops a leftover of a container that does not run, if that is still so.
func (s *Service) repair(ctx context.Context, kind, id string, do func(context.Context) error) (err error) {
	op, err := s.DB.Begin("container.repair", claim(meta.Drop, kind, "", id))
	if err != nil {
		return err
	}
	a, err := s.account()
	if err == nil && (alive(a.records[id]) || kind == kindContainer && a.records[id] != nil) {
		return op.Commit(nil) // it runs again, or it is there after all
	}
	if err == nil {
		err = do(ctx)
	}
	if err != nil {
		return errors.Join(err, op.Commit(nil)) // not to be finished by an undo: the next check sees it
	}
	return op.Commit(nil)
}

func (s *Service) checkShims(_ context.Context, report check.Report) error {
	a, err := s.account()
	if err != nil {
		return err
	}
	for id, c := range a.records {
		if !alive(c) || a.claimed[id] {
			continue
		}
		k, err := s.keeperOf(c)
		if err != nil {
			return err
		}
		if _, err := k.shimNow(c); err != nil {
			report(subject(id), "it should run, and its shim does not answer: "+sentence.Of(err), nil)
		}
	}
	return nil
}

func (s *Service) checkNamespaces(_ context.Context, report check.Report) error {
	pinned := map[string]bool{}
	for id, err := range s.NetNS.All() {
		if err != nil {
			return err
		}
		pinned[id] = true
	}
	a, err := s.account()
	if err != nil {
		return err
	}
	for id := range pinned {
		if a.idle(id) {
			report(subject(id), "it does not run, and its network namespace is pinned", func(ctx context.Context) error {
				return s.repair(ctx, kindNetNS, id, func(context.Context) error { return s.NetNS.Remove(id) })
			})
		}
	}
	for id, c := range a.records {
		own := ocispec.OwnNetwork(c.GetSpec())
		if alive(c) && own && !pinned[id] && !a.claimed[id] {
			report(subject(id), "it runs, and its network namespace is not pinned: start it again", nil)
		}
	}
	return nil
}

// cgroupRoot is where the hierarchies are mounted (cgroups(7)).
const cgroupRoot = "/sys/fs/cgroup"

func (s *Service) checkCgroups(_ context.Context, report check.Report) error {
	a, err := s.account()
	if err != nil {
		return err
	}
	found := map[string][]string{} // the directories of a cgroup: one, or one in each hierarchy of version 1
	patterns := []string{filepath.Join(cgroupRoot, s.Instance, "*"), filepath.Join(cgroupRoot, "*", s.Instance, "*")}
	for id, c := range a.records { // what else is under a parent that users named is theirs
		if p := c.GetSpec().GetCgroupParent(); p != "" {
			patterns = append(patterns, filepath.Join(cgroupRoot, p, id), filepath.Join(cgroupRoot, "*", p, id))
		}
	}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if st, err := os.Lstat(path); err == nil && st.IsDir() { // beside them are the kernel's files
				found[filepath.Base(path)] = append(found[filepath.Base(path)], path)
			}
		}
	}
	for id, paths := range found {
		switch {
		case !anID.MatchString(id):
			report("cgroup "+s.Instance+"/"+id, paths[0]+" is there, and no container's", func(context.Context) error {
				return removeAll(paths)
			})
		case a.idle(id):
			report(subject(id), "it does not run, and its cgroup "+paths[0]+" is there", func(ctx context.Context) error {
				return s.repair(ctx, kindShim, id, func(ctx context.Context) error { return s.end(ctx, id, nil) })
			})
		}
	}
	return nil
}

// removeAll removes cgroups that are empty. One with processes is refused by the kernel (EBUSY): whose they are, nobody
// here knows.
func removeAll(paths []string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); !errors.Is(err, fs.ErrNotExist) { // two hierarchies may be one, by two names
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Service) checkSnapshots(ctx context.Context, report check.Report) error {
	a, err := s.account()
	if err != nil {
		return err
	}
	for id, c := range a.records {
		if a.claimed[id] {
			continue
		}
		if _, err := s.Snapshots.Mounts(ctx, c.GetOrigin().GetSnapshotter(), id); errdefs.IsNotFound(err) || errdefs.IsDataLoss(err) {
			report(subject(id), fmt.Sprintf("its root filesystem is gone: %v: remove the container", err), nil)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// Usage sums what containers take: what they have written to their filesystems, and to their logs.
func (s *Service) Usage(ctx context.Context) ([]*systemv1.Usage, error) {
	layers, logs := &systemv1.Usage{Kind: "containers"}, &systemv1.Usage{Kind: "logs"}
	for c, err := range s.All(nil, true) {
		if err != nil {
			return nil, err
		}
		id := c.GetMeta().GetId()
		info, err := s.Snapshots.Usage(ctx, c.GetOrigin().GetSnapshotter(), id)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("usage of container %s: %w", label(c), err)
		}
		written, err := logSize(filepath.Join(s.dir(id), "log"))
		if err != nil {
			return nil, fmt.Errorf("usage of container %s: %w", label(c), err)
		}
		layers.Total++
		logs.Total++
		layers.Bytes += max(info.Bytes, 0)
		logs.Bytes += written
		if alive(c) {
			layers.Active++
			logs.Active++
			continue
		}
		layers.ReclaimableBytes += max(info.Bytes, 0)
		logs.ReclaimableBytes += written
	}
	return []*systemv1.Usage{layers, logs}, nil
}

func logSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // rotated away meanwhile, or never written
		}
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			n += fi.Size()
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	})
	return n, err
}
