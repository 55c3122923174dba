package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// Records remember processes that linger.
type Records interface {
	// Load returns what was saved, or an error of class NotFound.
	Load(family, name string) (*storev1.PluginProcess, error)
	// Save replaces it.
	Save(p *storev1.PluginProcess) error
	// Forget removes it; what is not there is forgotten.
	Forget(family, name string) error
}

// InStore keeps the records in the daemon's store, in its table "plugins".
func InStore(db *meta.DB) Records {
	return &inStore{db: db, table: meta.NewTable("plugins", func() *storev1.PluginProcess { return &storev1.PluginProcess{} })}
}

type inStore struct {
	db    *meta.DB
	table meta.Table[*storev1.PluginProcess]
}

func (r *inStore) Load(family, name string) (p *storev1.PluginProcess, err error) {
	err = r.db.View(func(tx *meta.Tx) (err error) {
		p, err = r.table.Get(tx, meta.Key(family, name))
		return err
	})
	return p, err
}

func (r *inStore) Save(p *storev1.PluginProcess) error {
	return r.db.Update(func(tx *meta.Tx) error { return r.table.Put(tx, meta.Key(p.GetFamily(), p.GetName()), p) })
}

func (r *inStore) Forget(family, name string) error {
	return r.db.Update(func(tx *meta.Tx) error { return r.table.Delete(tx, meta.Key(family, name)) })
}

// remember saves p so that the next daemon finds it.
func (s *supervised) remember(p *process, x *executable) error {
	if s.host.o.Records == nil || !p.info.Lingers {
		return nil
	}
	sum, err := x.digest()
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	return s.host.o.Records.Save(&storev1.PluginProcess{
		Family: string(s.id.Family), Name: s.id.Name, Socket: p.socket,
		Pid: uint32(p.pid), PidStarted: p.started, BootId: boot, //nolint:gosec // a pid
		Protocol: uint32(p.protocol), Checksum: sum, //nolint:gosec // a small number
	})
}

func (s *supervised) forget() {
	if s.host.o.Records == nil {
		return
	}
	if err := s.host.o.Records.Forget(string(s.id.Family), s.id.Name); err != nil {
		s.log.Warn("plugin's record stays", "err", err.Error())
	}
}

// reattach finds the process that lingered. If anything about it is not as it was written down it is somebody else's: it
// is let be, and nobody is signalled.
func (s *supervised) reattach(ctx context.Context) *process {
	if s.host.o.Records == nil {
		return nil
	}
	rec, err := s.host.o.Records.Load(string(s.id.Family), s.id.Name)
	if err != nil {
		if !errdefs.IsNotFound(err) {
			s.log.Warn("plugin's record cannot be read", "err", err.Error())
		}
		return nil
	}
	p, err := s.refind(ctx, rec)
	if err != nil {
		s.log.Info("plugin is not found again", "pid", rec.GetPid(), "why", err.Error())
		s.forget()
		return nil
	}
	return p
}

func (s *supervised) refind(ctx context.Context, rec *storev1.PluginProcess) (*process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if boot != rec.GetBootId() {
		return nil, errors.New("the machine was booted since")
	}
	if d := s.dirs(); filepath.Dir(rec.GetSocket()) != d.state {
		return nil, fmt.Errorf("its socket %s is not in %s", rec.GetSocket(), d.state)
	}
	if v := int(rec.GetProtocol()); v < plugins.Oldest || v > plugins.Protocol {
		return nil, fmt.Errorf("it speaks version %d of the driver contract", v)
	}
	p, err := adopt(int(rec.GetPid()), rec.GetPidStarted(), rec.GetChecksum())
	if err != nil {
		return nil, err
	}
	p.socket, p.protocol, p.log = rec.GetSocket(), int(rec.GetProtocol()), s.dirs().log
	go p.watchDeath()
	if err := s.introduce(ctx, p); err != nil {
		return nil, errors.Join(err, p.abandon())
	}
	if !p.info.Lingers {
		return nil, errors.Join(errors.New("it does not linger any more"), p.abandon())
	}
	s.host.logs.watch(p.log)
	return p, nil
}

// adopt holds a process by descriptor, and looks at it after that: a pid alone is no name.
func adopt(pid int, started uint64, checksum []byte) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", pid, err)
	}
	p := &process{pid: pid, started: started, pidfd: os.NewFile(uintptr(fd), "pidfd"), dead: make(chan struct{}), startedAt: time.Now()}
	got, err := startTime(pid)
	if err == nil && got != started {
		err = fmt.Errorf("pid %d is another process by now", pid)
	}
	if err == nil {
		err = p.sameProgram(checksum)
	}
	if err != nil {
		return nil, errors.Join(err, p.pidfd.Close())
	}
	return p, nil
}

func (p *process) sameProgram(checksum []byte) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum, err := digestFrom(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, checksum) {
		return fmt.Errorf("pid %d runs another program", p.pid)
	}
	return nil
}

// abandon lets go of a process that turned out not to be ours.
func (p *process) abandon() error {
	p.hangUp()
	err := p.pidfd.Close() // ends watchDeath
	<-p.dead
	return err
}
