// Package containers owns containers from create to remove.
//
//	server.go      gRPC in, gRPC out
//	containers.go  what it needs, and the verbs that read
//	create.go      a record and a root filesystem
//	verbs.go       the verbs that change what is wanted; update.go the spec
//	keeper.go      one goroutine per container: from what is to what should be
//	next.go        the decision, pure
//	launch.go      from a record to a process; host.go what of the host it is given, join.go what of others
//	boot.go        what a shim is told, and the files that its container is made from
//	watch.go       what shims say, and their ends
//	release.go     from an ended process to nothing
//	recover.go     what was running when the last daemon ended
//	attach.go      joining a process; exec.go another process in a container; backlog.go slow clients
//	logs.go        what a container has written
//	check.go       the store, directories, shims, namespaces and cgroups compared
//	store.go       the tables
//	admit/ filter/ names/   pure parts: what may be made, what a list asks for, what things are called
//
// A container is a record with two writers: users write what is wanted, its keeper writes what is.
// Everything that a running container needs is its shim's and the kernel's; this package may be
// killed at any instant.
package containers

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/cdi"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
	"github.com/gantryd/gantry/services/containers/filter"
	"github.com/gantryd/gantry/snapshotters"
)

// Images finds what to run.
type Images interface {
	// Resolve returns an image by any of its names, unpacked for the snapshotter; NotFound if it is not here.
	Resolve(ctx context.Context, ref, snapshotter string) (*imagesv1.Image, error)
}

// Networks joins a container to its networks.
type Networks interface {
	// Check says at once what would stop a container from joining: a network that is not there, a port in use.
	Check(ctx context.Context, spec *containersv1.Spec, container string) error
	// Drops is what Leave claims; whoever begins an operation with it saves a commit.
	Drops(tx *meta.Tx, container string) []*storev1.Claim
	// Join puts c's endpoints into the network namespace pinned at netns, under op.
	Join(ctx context.Context, op *meta.Op, c *containersv1.Container, netns string) ([]*networksv1.Endpoint, error)
	// Leave takes them out; the namespace is about to go. Of one that has none it succeeds.
	Leave(ctx context.Context, op *meta.Op, c *containersv1.Container) error
}

// Volumes looks after the volumes in Container.Volumes.
type Volumes interface {
	// Ensure makes those that are not there.
	Ensure(ctx context.Context, op *meta.Op, c *containersv1.Container) error
	// Mount makes them usable: one mount a volume, with the path in the container as its target.
	Mount(ctx context.Context, op *meta.Op, c *containersv1.Container) ([]*typesv1.Mount, error)
	// Unmount ends that use. Of what is not mounted it succeeds.
	Unmount(ctx context.Context, op *meta.Op, c *containersv1.Container) error
	// MountClaims is what Mount claims, and DropClaims what Unmount does, and Release too if forget is set;
	// whoever begins an operation with them saves commits.
	MountClaims(tx *meta.Tx, c *containersv1.Container) []*storev1.Claim
	DropClaims(tx *meta.Tx, c *containersv1.Container, forget bool) []*storev1.Claim
	// Release says that c goes for good, and its volumes without a name with it if anonymous is set.
	Release(ctx context.Context, op *meta.Op, c *containersv1.Container, anonymous bool) error
}

// Snapshots makes and drops filesystems.
type Snapshots interface {
	// Prepare makes a writable snapshot of parent.
	Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error)
	// Mounts says how to mount one.
	Mounts(ctx context.Context, snapshotter, key string) ([]*typesv1.Mount, error)
	// Remove drops one. Of nothing it succeeds.
	Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error
	// Usage asks how much one takes.
	Usage(ctx context.Context, snapshotter, key string) (snapshotters.Info, error)
}

// Shims starts shims and finds them again.
type Shims interface {
	// Spawn starts a shim in dir and waits until it listens.
	Spawn(ctx context.Context, dir bundle.Dir, boot *shimv1.Boot) (supervise.Shim, error)
	// Find reconnects to the shim of dir. NotFound: there is none, for certain; any other error: who knows.
	Find(ctx context.Context, dir bundle.Dir) (supervise.Shim, error)
	// Bury ends whatever is left of the container of dir and says how it ended.
	Bury(ctx context.Context, dir bundle.Dir) (bundle.Exit, error)
}

// NetNS pins network namespaces.
type NetNS interface {
	// Path is where id is, or would be, pinned.
	Path(id string) string
	// Pin makes a namespace and pins it under id; one that is pinned stays.
	Pin(id string) (path string, err error)
	// Remove lets go of it. Of nothing it succeeds.
	Remove(id string) error
	// All ranges over what is pinned.
	All() iter.Seq2[string, error]
}

// Config is where a Service works and what it fills in where users say nothing.
type Config struct {
	Root        string       // survives reboots
	State       string       // does not
	Instance    string       // the daemon's name for what is its own in the kernel
	Version     string       // of the daemon
	Snapshotter string       // the default
	Host        ocispec.Host // where resolv.conf and hosts are taken from; zero means the usual places
	BootID      string       // of this boot; "" means what the kernel says
	Log         *slog.Logger // nil means the default
	// LogLimits is what is kept of the output of containers whose users do not say: bytes of one
	// segment, and segments. nil, or zeros, mean 10 MiB and 3.
	LogLimits func() (bytes int64, files uint32)
	// Seccomp returns the path of the compiled filter for a container with these capabilities; nil, or "", means
	// none. SeccompProfile is the same for runtimes that compile it themselves.
	Seccomp        func(ctx context.Context, caps []string) (string, error)
	SeccompProfile func(caps []string) (*specs.LinuxSeccomp, error)
	// Runtimes are the OCI runtimes that containers may be made by; nil means none.
	Runtimes func() []admit.Program
	CDI      cdi.Dirs // descriptions of devices by the Container Device Interface
	// Capabilities are the daemon's own: what a privileged container has. nil means every one there is.
	Capabilities []string
}

// Parts is what a Service works with.
type Parts struct {
	DB        *meta.DB
	Images    Images
	Networks  Networks
	Volumes   Volumes
	Snapshots Snapshots
	Shims     Shims
	NetNS     NetNS
}

// Service is the verbs.
type Service struct {
	Config
	Parts
	t     tables
	exits oldExits
	log   *slog.Logger
	times times

	ctx    context.Context //nolint:containedctx // the life of the keepers, ended by Close
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // keepers, and what outlives a call
	untidy chan struct{}  // something could not be undone

	mu      sync.Mutex
	keepers map[string]*keeper
	closed  bool
}

// errClosing is why keepers end.
var errClosing = fmt.Errorf("the daemon is ending: %w", errdefs.ErrUnavailable)

// New returns a Service. It says how what containers claim is taken back; call Recover once every
// other service has done so too.
func New(cfg Config, p Parts) *Service {
	s := &Service{Config: cfg, Parts: p, t: newTables(), times: newTimes(), keepers: map[string]*keeper{}, untidy: make(chan struct{}, 1), log: cfg.Log}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.Host == (ocispec.Host{}) {
		s.Host = ocispec.ThisHost()
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	p.DB.OnUndo(kindContainer, s.undoContainer)
	p.DB.OnUndo(kindShim, s.undoShim)
	p.DB.OnUndo(kindNetNS, s.undoNetNS)
	p.DB.OnUndo(kindLimits, s.undoLimits)
	s.work.Go(s.tidy)
	return s
}

// Close ends the keepers and waits for them. Containers live on.
func (s *Service) Close() {
	s.shut()
	s.cancel(errClosing)
	s.work.Wait()
}

func (s *Service) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// dir is a container's directory that stays.
func (s *Service) dir(id string) string { return filepath.Join(s.Root, "containers", id) }

// state is the one that is gone after a reboot.
func (s *Service) state(id string) bundle.Dir {
	return bundle.Dir{State: filepath.Join(s.State, "c", id), Root: s.dir(id)}
}

// Get returns a container by id, name or the beginning of an id.
func (s *Service) Get(_ context.Context, ref string) (c *containersv1.Container, err error) {
	err = s.DB.View(func(tx *meta.Tx) error {
		c, err = meta.Resolve(tx, s.t.containers, names, ref)
		return err
	})
	return c, err
}

// All ranges over the containers that match, in the order they were created, as they were at one moment. It takes no lock.
func (s *Service) All(filters []*typesv1.Filter, all bool) iter.Seq2[*containersv1.Container, error] {
	return func(yield func(*containersv1.Container, error) bool) {
		var found []*containersv1.Container
		if err := s.DB.View(func(tx *meta.Tx) error {
			match, err := filter.New(filters, all, s.world(tx))
			if err != nil {
				return err
			}
			for _, c := range s.t.containers.All(tx) {
				if match(c) {
					found = append(found, c)
				}
			}
			return nil
		}); err != nil {
			yield(nil, err)
			return
		}
		slices.SortFunc(found, func(a, b *containersv1.Container) int {
			return a.GetMeta().GetCreatedAt().AsTime().Compare(b.GetMeta().GetCreatedAt().AsTime())
		})
		for _, c := range found {
			if !yield(c, nil) {
				return
			}
		}
	}
}

// world is what filters ask for, at the moment of tx.
func (s *Service) world(tx *meta.Tx) filter.World {
	return filter.World{
		Alive: alive,
		Find:  func(ref string) (*containersv1.Container, error) { return meta.Resolve(tx, s.t.containers, names, ref) },
		NetworkID: func(name string) string {
			id, _ := meta.Names("network").Resolve(tx, name) // nobody has it: nothing matches
			return id
		},
	}
}

// resolve finds a container and its keeper.
func (s *Service) resolve(ctx context.Context, ref string) (*containersv1.Container, *keeper, error) {
	c, err := s.Get(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	k, err := s.keeperOf(c)
	return c, k, err
}

// label is how people know a container.
func label(c *containersv1.Container) string {
	if n := c.GetMeta().GetName(); n != "" {
		return n
	}
	return meta.Short(c.GetMeta().GetId())
}

// tidy has what could not be undone undone again, with growing patience.
func (s *Service) tidy() {
	const first, last = time.Second, time.Minute
	wait := first
	for {
		select {
		case <-s.untidy:
		case <-s.ctx.Done():
			return
		}
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
		if err := s.DB.Recover(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("what was begun cannot be taken back yet", "err", err, "again", min(2*wait, last))
			wait = min(2*wait, last)
			s.mess()
			continue
		}
		wait = first
		s.wakeAll()
	}
}

// mess says that something is left in the journal.
func (s *Service) mess() {
	select {
	case s.untidy <- struct{}{}:
	default:
	}
}
