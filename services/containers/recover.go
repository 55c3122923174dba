package containers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gantryd/gantry/internal/meta"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// finders is how many shims are looked for at a time.
const finders = 32

// Recover finds what was running when the last daemon ended, and starts the keepers. It comes
// after the store's own recovery, and ends within a few seconds whatever is broken: a shim that does not answer
// is looked for on.
func (s *Service) Recover(ctx context.Context) error {
	var all []*containersv1.Container
	left := false
	if err := s.DB.View(func(tx *meta.Tx) error {
		s.exits.load(tx, s.t.exits)
		for op := range tx.Ops() {
			left = left || s.DB.Left(op.GetId())
		}
		for _, c := range s.t.containers.All(tx) {
			all = append(all, c)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	rebooted, err := s.rebooted()
	if err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	if left {
		s.mess() // what the store's recovery could not take back yet
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, finders)
	for _, c := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.recoverOne(ctx, c, rebooted)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.rememberBoot()
}

// recoverOne finds out how one container does, and starts its keeper.
func (s *Service) recoverOne(ctx context.Context, c *containersv1.Container, rebooted bool) {
	k := s.enlist(c)
	if k == nil {
		return
	}
	_, err := os.Stat(s.state(k.id).State)
	k.held = alive(c) || err == nil
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_STARTING: // the journal has taken it back
		_ = k.update(func(is *containersv1.Status) {
			if is.Phase = containersv1.Phase_PHASE_EXITED; is.GetRuns() == 0 {
				is.Phase = containersv1.Phase_PHASE_CREATED
			}
		})
	case containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_RESTARTING,
		containersv1.Phase_PHASE_STOPPING, containersv1.Phase_PHASE_UNREACHABLE:
		if rebooted {
			k.bury(ctx, true)
		} else {
			k.find(ctx, c)
		}
	case containersv1.Phase_PHASE_UNSPECIFIED, containersv1.Phase_PHASE_CREATED, containersv1.Phase_PHASE_EXITED:
	}
	if err := s.background(func() { k.run(s.ctx) }); err != nil {
		k.unwatch()
	}
}

// enlist makes the keeper of a record, not yet at work.
func (s *Service) enlist(c *containersv1.Container) *keeper {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := c.GetMeta().GetId()
	if s.closed || s.keepers[id] != nil {
		return nil
	}
	k := newKeeper(s, c)
	s.keepers[id] = k
	return k
}

// rebooted reports whether the host was, since a daemon was last here.
func (s *Service) rebooted() (bool, error) {
	if s.BootID == "" {
		raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return false, err
		}
		s.BootID = strings.TrimSpace(string(raw))
	}
	last, err := os.ReadFile(s.bootFile())
	if os.IsNotExist(err) {
		return false, nil
	}
	return strings.TrimSpace(string(last)) != s.BootID, err
}

func (s *Service) bootFile() string { return filepath.Join(s.Root, "containers", ".boot") }

// rememberBoot comes last: a daemon that is killed while it recovers finds the same next time.
func (s *Service) rememberBoot() error {
	if err := os.MkdirAll(filepath.Dir(s.bootFile()), 0o711); err != nil { //nolint:gosec // passed through, not listed
		return err
	}
	tmp := s.bootFile() + ".new"
	if err := os.WriteFile(tmp, []byte(s.BootID+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.bootFile())
}
