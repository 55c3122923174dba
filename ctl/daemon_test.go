package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const id = "4f1c2e9a0b7d4f1c2e9a0b7d4f1c2e9a0b7d4f1c2e9a0b7d4f1c2e9a0b7d4f1c"

// buffer is what a command writes, to be read while it does.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// daemon answers what a test tells it to, and keeps what it was asked.
type daemon struct {
	containersv1.UnimplementedContainersServiceServer
	images imageService
	die    func() // cuts every connection, as kill -9 does

	out, err buffer
	env      *cli.Env

	create   func(*containersv1.CreateRequest) error
	start    func(*containersv1.StartRequest) error
	remove   func(*containersv1.RemoveRequest) error
	get      func(ref string) (*containersv1.Container, error)
	process  func(p process) *typesv1.Exit // what runs in Attach, once started, and in Exec
	refuse   error                         // of Exec and Attach, before anything runs
	found    []*containersv1.Container
	records  []*containersv1.LogRecord
	warnings []string // of Create
	lacks    []string // warnings of Start
	started  chan struct{}
	kills    chan string
	once     sync.Once

	mu    sync.Mutex
	calls []string
}

// process is what a container's process sees.
type process struct {
	out, err func(string)
	in       func() *typesv1.ProcessInput // nil: nothing more comes
	killed   <-chan string
}

// imageService is the daemon's image service.
type imageService struct {
	imagesv1.UnimplementedImagesServiceServer
	d    *daemon
	here bool // there is an image of any name
	pull error

	platform string // which it is for
}

// absent are the services where nothing is found.
type (
	noNetworks struct {
		networksv1.UnimplementedNetworksServiceServer
	}
	noVolumes struct {
		volumesv1.UnimplementedVolumesServiceServer
	}
)

func (noNetworks) Get(_ context.Context, r *networksv1.GetRequest) (*networksv1.GetResponse, error) {
	return nil, status.Errorf(codes.NotFound, "get network %s: not found", r.GetRef())
}

func (noVolumes) Get(_ context.Context, r *volumesv1.GetRequest) (*volumesv1.GetResponse, error) {
	return nil, status.Errorf(codes.NotFound, "get volume %s: not found", r.GetRef())
}

// newDaemon is a daemon with one image, whose process says hello and exits.
func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{started: make(chan struct{}), kills: make(chan string, 16)}
	d.images = imageService{d: d, here: true}
	d.process = func(p process) *typesv1.Exit {
		p.out("hello\n")
		return &typesv1.Exit{}
	}
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	containersv1.RegisterContainersServiceServer(server, d)
	eventsv1.RegisterEventsServiceServer(server, eventsService{d: d})
	systemv1.RegisterSystemServiceServer(server, systemService{d: d})
	imagesv1.RegisterImagesServiceServer(server, &d.images)
	networksv1.RegisterNetworksServiceServer(server, noNetworks{})
	volumesv1.RegisterVolumesServiceServer(server, noVolumes{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-served
	})
	d.die = server.Stop
	d.env = &cli.Env{In: strings.NewReader(""), Out: &d.out, Err: &d.err, Now: func() time.Time { return now }}
	d.env.Use(conn)
	return d
}

// gantry runs the command as main does, and gives its exit code.
func (d *daemon) gantry(args ...string) int { return run(d.env, args) }

// expect runs the command and compares all that can be seen of it from outside.
func (d *daemon) expect(t *testing.T, code int, out, err string, args ...string) {
	t.Helper()
	got := d.gantry(args...)
	if got != code || d.out.String() != out || !strings.Contains(d.err.String(), err) || err == "" && d.err.String() != "" {
		t.Errorf("gantry %s: exit %d, want %d\nstdout %q\n  want %q\nstderr %q\n  want %q",
			strings.Join(args, " "), got, code, d.out.String(), out, d.err.String(), err)
	}
}

func (d *daemon) called(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

func (d *daemon) wasCalled(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.calls, want) {
		t.Errorf("calls %q, want %q", d.calls, want)
	}
}

// reason is an error with the word that gantryd gives beside its class.
func reason(c codes.Code, word, format string, args ...any) error {
	s, err := status.Newf(c, format, args...).WithDetails(&errdetails.ErrorInfo{Domain: "gantry", Reason: word})
	if err != nil {
		panic(err)
	}
	return s.Err()
}

func container(spec *containersv1.Spec) *containersv1.Container {
	return &containersv1.Container{Meta: &typesv1.Meta{Id: id, Name: "web", CreatedAt: timestamppb.New(now.Add(-time.Hour))}, Spec: spec}
}

func (d *daemon) Create(_ context.Context, r *containersv1.CreateRequest) (*containersv1.CreateResponse, error) {
	d.called("create %s", r.GetSpec().GetImage())
	if !d.images.here {
		return nil, status.Errorf(codes.NotFound, "create container: image %s: not found", r.GetSpec().GetImage())
	}
	if d.create != nil {
		if err := d.create(r); err != nil {
			return nil, err
		}
	}
	return &containersv1.CreateResponse{Container: container(r.GetSpec()), Warnings: d.warnings}, nil
}

func (d *daemon) Start(_ context.Context, r *containersv1.StartRequest) (*containersv1.StartResponse, error) {
	d.called("start %.12s", r.GetRef())
	if d.start != nil {
		if err := d.start(r); err != nil {
			return nil, err
		}
	}
	d.once.Do(func() { close(d.started) })
	return &containersv1.StartResponse{Container: &containersv1.Container{Status: &containersv1.Status{Warnings: d.lacks}}}, nil
}

func (d *daemon) Remove(_ context.Context, r *containersv1.RemoveRequest) (*containersv1.RemoveResponse, error) {
	d.called("remove %.12s force=%t volumes=%t", r.GetRef(), r.GetForce(), r.GetVolumes())
	if d.remove != nil {
		return &containersv1.RemoveResponse{}, d.remove(r)
	}
	return &containersv1.RemoveResponse{}, nil
}

func (d *daemon) Update(_ context.Context, r *containersv1.UpdateRequest) (*containersv1.UpdateResponse, error) {
	slices.Sort(r.GetUpdateMask().Paths)
	res := r.GetSpec().GetResources()
	d.called("update %s %s %d %d %v", r.GetRef(), strings.Join(r.GetUpdateMask().GetPaths(), ","), res.GetMemoryBytes(), res.GetPids(), r.GetSpec().GetRestart().GetWhen())
	return &containersv1.UpdateResponse{}, nil
}

func (d *daemon) Kill(_ context.Context, r *containersv1.KillRequest) (*containersv1.KillResponse, error) {
	d.called("kill %.12s %s", r.GetRef(), r.GetSignal())
	d.kills <- r.GetSignal()
	return &containersv1.KillResponse{}, nil
}

func (d *daemon) Get(_ context.Context, r *containersv1.GetRequest) (*containersv1.GetResponse, error) {
	if d.get != nil {
		c, err := d.get(r.GetRef())
		return &containersv1.GetResponse{Container: c}, err
	}
	return nil, status.Errorf(codes.NotFound, "get container %s: not found", r.GetRef())
}

// Stop stops at once.
func (d *daemon) Stop(_ context.Context, r *containersv1.StopRequest) (*containersv1.StopResponse, error) {
	d.called("stop %s signal=%s grace=%v", r.GetRef(), r.GetSignal(), r.GetGrace().AsDuration())
	return &containersv1.StopResponse{}, nil
}

// Wait waits for a process that does not end.
func (d *daemon) Wait(ctx context.Context, r *containersv1.WaitRequest) (*containersv1.WaitResponse, error) {
	d.called("wait %s", r.GetRef())
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// systemService has three plugins.
type systemService struct {
	systemv1.UnimplementedSystemServiceServer
	d *daemon
}

func (s systemService) ListPlugins(_ *systemv1.ListPluginsRequest, out systemv1.SystemService_ListPluginsServer) error {
	for _, p := range []*systemv1.Plugin{{Family: "network", Name: "bridge"}, {Family: "snapshotter", Name: "local"}, {Family: "volume", Name: "local"}} {
		if err := out.Send(&systemv1.ListPluginsResponse{Plugin: p}); err != nil {
			return err
		}
	}
	return nil
}

func (s systemService) RestartPlugin(_ context.Context, r *systemv1.RestartPluginRequest) (*systemv1.RestartPluginResponse, error) {
	s.d.called("restart %s/%s", r.GetFamily(), r.GetName())
	return &systemv1.RestartPluginResponse{}, nil
}

// eventsService has no events, and keeps what it was asked.
type eventsService struct {
	eventsv1.UnimplementedEventsServiceServer
	d *daemon
}

func (s eventsService) Watch(r *eventsv1.WatchRequest, _ eventsv1.EventsService_WatchServer) error {
	s.d.called("watch after=%d start=%t since=%s until=%s", r.GetAfter(), r.GetFromStart(), r.GetSince().AsTime().Format(time.TimeOnly), r.GetUntil().AsTime().Format(time.TimeOnly))
	return nil
}

func (d *daemon) List(r *containersv1.ListRequest, s containersv1.ContainersService_ListServer) error {
	var filters []string
	for _, f := range r.GetFilters() {
		filters = append(filters, f.GetKey()+"="+f.GetValue())
	}
	d.called("list all=%t %s", r.GetAll(), strings.Join(filters, " "))
	for _, c := range d.found {
		if err := s.Send(&containersv1.ListResponse{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) Logs(r *containersv1.LogsRequest, s containersv1.ContainersService_LogsServer) error {
	d.called("logs %s tail=%d follow=%t", r.GetRef(), r.GetTail(), r.GetFollow())
	err := s.Send(&containersv1.LogsResponse{Records: d.records})
	if err == nil && r.GetFollow() && r.GetRef() == "endless" {
		<-s.Context().Done()
	}
	return err
}

func (d *daemon) Attach(s containersv1.ContainersService_AttachServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	d.called("attach %.12s await=%t stdin=%t", first.GetStart().GetRef(), first.GetStart().GetAwait(), !first.GetStart().GetNoStdin())
	if d.refuse != nil {
		return d.refuse
	}
	if err := s.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	if first.GetStart().GetAwait() {
		select {
		case <-d.started:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
	return d.serve(func(o *typesv1.ProcessOutput) error {
		return s.Send(&containersv1.AttachResponse{Output: o})
	}, func() (*typesv1.ProcessInput, error) {
		m, err := s.Recv()
		return m.GetInput(), err
	})
}

func (d *daemon) Exec(s containersv1.ContainersService_ExecServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	d.called("exec %s %q env=%q user=%s detach=%t stdin=%t", start.GetRef(), start.GetArgs(), start.GetEnv(), start.GetUser(), start.GetDetach(), start.GetOpenStdin())
	if d.refuse != nil || start.GetDetach() {
		return d.refuse
	}
	return d.serve(func(o *typesv1.ProcessOutput) error {
		return s.Send(&containersv1.ExecResponse{Output: o})
	}, func() (*typesv1.ProcessInput, error) {
		m, err := s.Recv()
		return m.GetInput(), err
	})
}

func (d *daemon) serve(send func(*typesv1.ProcessOutput) error, recv func() (*typesv1.ProcessInput, error)) error {
	exit := d.process(process{
		out: func(s string) {
			_ = send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Stdout{Stdout: []byte(s)}})
		},
		err: func(s string) {
			_ = send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Stderr{Stderr: []byte(s)}})
		},
		in: func() *typesv1.ProcessInput {
			in, err := recv()
			if err != nil {
				return nil
			}
			return in
		},
		killed: d.kills,
	})
	if exit == nil {
		return nil // a stream that ends too early
	}
	return send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Exit{Exit: exit}})
}

func (i *imageService) Get(_ context.Context, r *imagesv1.GetRequest) (*imagesv1.GetResponse, error) {
	if !i.here || r.GetPlatform() != "" && r.GetPlatform() != i.platform {
		return nil, status.Errorf(codes.NotFound, "get image %s: not found", r.GetRef())
	}
	return &imagesv1.GetResponse{
		Image: &imagesv1.Image{Meta: &typesv1.Meta{Name: r.GetRef()}, Target: &typesv1.Descriptor{Digest: "sha256:aa"}},
		Tags:  []string{"docker.io/library/app:1", "registry.example/app:2"}, Digests: []string{"registry.example/app@sha256:aa"},
	}, nil
}

func (i *imageService) Pull(r *imagesv1.PullRequest, s imagesv1.ImagesService_PullServer) error {
	i.d.called("pull %s platform=%s", r.GetRef(), r.GetPlatform())
	if i.pull != nil {
		return i.pull
	}
	i.here, i.platform = true, r.GetPlatform()
	if err := s.Send(&imagesv1.PullResponse{Message: &imagesv1.PullResponse_Progress{Progress: &typesv1.Progress{Verb: "resolve"}}}); err != nil {
		return err
	}
	return s.Send(&imagesv1.PullResponse{Message: &imagesv1.PullResponse_Image{Image: &imagesv1.Image{Meta: &typesv1.Meta{Name: r.GetRef()}}}})
}

// until polls until cond holds.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}
