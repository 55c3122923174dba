package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"sync"
	"time"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/gc"
)

// How often what is not urgent is done.
const (
	mendEvery    = time.Minute // operations that could not be undone when they failed
	collectEvery = time.Hour
	collectGrace = time.Hour
	farewell     = 2 * time.Second // what calls under way get when the daemon ends
)

var errEnding = errors.New("the daemon is ending")

// serve is the daemon's life: lock, listen, recover, serve, end. The sockets listen before
// anything else is done, so that callers wait for a daemon that recovers, and none fails.
func serve(ctx context.Context, o *options, level *slog.LevelVar, hup <-chan os.Signal) (err error) {
	c := o.config
	if err := os.MkdirAll(c.Root, 0o711); err != nil { //nolint:gosec // containers reach their files through it
		return fmt.Errorf("make root directory: %w", err)
	}
	lock, err := lockState(c.State)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the lock goes with it
	listeners, err := listen(c.Listen, c.TLS, user.LookupGroup)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	h, err := build(c)
	if err != nil {
		return err
	}
	// The parts outlive the signal to end, by as long as it takes to end them in order.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() {
		if err := h.host.Run(life); err != nil && life.Err() == nil {
			slog.Error("plugin host ends", "err", err)
		}
	})
	defer func() { //nolint:contextcheck // what ends the daemon outlives the signal to end it
		err = errors.Join(err, h.close(end, &work))
	}()
	h.recover(ctx)
	work.Go(func() { h.mend(life) })
	work.Go(func() { h.collector.Run(life, collectEvery, gc.Options{Grace: collectGrace}) })
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		work.Go(func() { failed <- h.server.Serve(l) })
	}
	slog.Info("gantryd serves", "version", version, "root", c.Root, "state", c.State, "listen", c.Listen)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("serve: %w", err)
		case <-hup:
			h.reload(o, level)
		}
	}
}

// recover takes up what the last daemon left. What cannot be done yet (a driver is down) stays
// claimed and is tried again; it keeps nobody from being served.
func (h *house) recover(ctx context.Context) {
	began := time.Now()
	if err := h.db.Recover(ctx); err != nil {
		slog.Warn("some operations could not be undone yet", "err", err)
	}
	if err := h.images.Recover(ctx); err != nil {
		slog.Warn("some images could not be looked at yet", "err", err)
	}
	if err := h.networks.Recover(ctx); err != nil {
		slog.Warn("some networks could not be restored yet", "err", err)
	}
	if err := h.containers.Recover(ctx); err != nil {
		slog.Warn("some containers could not be found yet", "err", err)
	}
	slog.Info("recovered", "took", time.Since(began))
}

// mend tries again, now and then, what could not be undone.
func (h *house) mend(ctx context.Context) {
	tick := time.NewTicker(mendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := h.db.Recover(ctx); err != nil {
				slog.Warn("some operations could not be undone yet", "err", err)
			}
		}
	}
}

// reload reads the configuration again. What is wrong with it is told, and nothing changes.
func (h *house) reload(o *options, level *slog.LevelVar) {
	c, err := o.load()
	if err != nil {
		slog.Error("configuration is wrong; the old one holds", "err", err)
		return
	}
	l, _ := c.level() // load has looked at it
	level.Set(l)
	h.images.Configure(c.registries(), c.Limits.Downloads)
	h.host.LimitCalls(c.Limits.PluginCalls)
	h.limits.Store(&c.Limits)
	h.registered.Store(&c.Runtimes)
	slog.Info("configuration read again: registries, runtimes, log level and limits hold at once, the rest at the next start")
}

// close ends the parts, last made first. Containers live on; where none runs, what is gantry's in
// the kernel goes as well, so that a machine whose daemon was stopped is as it was before.
func (h *house) close(end context.CancelCauseFunc, work *sync.WaitGroup) error {
	stopped := make(chan struct{})
	go func() {
		h.server.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(farewell):
		h.server.Stop() // those that follow something never end by themselves
		<-stopped
	}
	h.containers.Close()
	h.shims.Close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), 15*time.Second, errEnding)
	defer cancel()
	h.vacate(ctx)
	if err := h.host.Close(ctx); err != nil {
		slog.Warn("some plugins did not end", "err", err)
	}
	end(errEnding)
	work.Wait()
	return h.db.Close()
}

// vacate takes away what is gantry's in the kernel and serves nobody. Failing to is no failure: the
// next daemon uses what it finds.
func (h *house) vacate(ctx context.Context) {
	if err := h.networks.Release(ctx); err != nil {
		slog.Warn("networks stay in the kernel", "err", err)
	}
	if err := h.netns.Close(); err != nil {
		slog.Debug("namespaces stay pinned", "err", err)
	}
	if g, err := cgroup.Open("/" + h.config.instance()); err == nil {
		if err := g.RemoveIfEmpty(); err != nil {
			slog.Debug("cgroups stay", "err", err)
		}
	}
}
