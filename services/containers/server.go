package containers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// Register offers the service on r.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	containersv1.RegisterContainersServiceServer(r, &server{s: s})
}

type server struct {
	containersv1.UnimplementedContainersServiceServer
	s *Service
}

func (v *server) Create(ctx context.Context, r *containersv1.CreateRequest) (*containersv1.CreateResponse, error) {
	c, err := v.s.Create(ctx, r.GetName(), r.GetLabels(), r.GetSpec())
	if err != nil {
		return nil, err
	}
	return &containersv1.CreateResponse{Container: c, Warnings: admit.Warnings(c.GetSpec(), v.s.Capabilities)}, nil
}

func (v *server) Get(ctx context.Context, r *containersv1.GetRequest) (*containersv1.GetResponse, error) {
	c, err := v.s.Get(ctx, r.GetRef())
	if err != nil {
		return nil, err
	}
	return &containersv1.GetResponse{Container: c}, nil
}

func (v *server) List(r *containersv1.ListRequest, out grpc.ServerStreamingServer[containersv1.ListResponse]) error {
	for c, err := range v.s.All(r.GetFilters(), r.GetAll()) {
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		if err := out.Send(&containersv1.ListResponse{Container: c}); err != nil {
			return err
		}
	}
	return nil
}

func (v *server) Update(ctx context.Context, r *containersv1.UpdateRequest) (*containersv1.UpdateResponse, error) {
	c, err := v.s.Update(ctx, r.GetRef(), r.GetSpec(), r.GetUpdateMask().GetPaths(), r.GetRevision())
	if err != nil {
		return nil, err
	}
	return &containersv1.UpdateResponse{Container: c}, nil
}

func (v *server) Remove(ctx context.Context, r *containersv1.RemoveRequest) (*containersv1.RemoveResponse, error) {
	if err := v.s.Remove(ctx, r.GetRef(), r.GetForce(), r.GetVolumes()); err != nil {
		return nil, err
	}
	return &containersv1.RemoveResponse{}, nil
}

func (v *server) Start(ctx context.Context, r *containersv1.StartRequest) (*containersv1.StartResponse, error) {
	c, err := v.s.Start(ctx, r.GetRef())
	if err != nil {
		return nil, err
	}
	return &containersv1.StartResponse{Container: c}, nil
}

func (v *server) Stop(ctx context.Context, r *containersv1.StopRequest) (*containersv1.StopResponse, error) {
	var grace *time.Duration
	if r.GetGrace() != nil {
		d := r.GetGrace().AsDuration()
		grace = &d
	}
	c, err := v.s.Stop(ctx, r.GetRef(), r.GetSignal(), grace)
	if err != nil {
		return nil, err
	}
	return &containersv1.StopResponse{Container: c}, nil
}

func (v *server) Kill(ctx context.Context, r *containersv1.KillRequest) (*containersv1.KillResponse, error) {
	if err := v.s.Kill(ctx, r.GetRef(), r.GetSignal()); err != nil {
		return nil, err
	}
	return &containersv1.KillResponse{}, nil
}

func (v *server) Pause(ctx context.Context, r *containersv1.PauseRequest) (*containersv1.PauseResponse, error) {
	if err := v.s.Pause(ctx, r.GetRef()); err != nil {
		return nil, err
	}
	return &containersv1.PauseResponse{}, nil
}

func (v *server) Resume(ctx context.Context, r *containersv1.ResumeRequest) (*containersv1.ResumeResponse, error) {
	if err := v.s.Resume(ctx, r.GetRef()); err != nil {
		return nil, err
	}
	return &containersv1.ResumeResponse{}, nil
}

func (v *server) Wait(ctx context.Context, r *containersv1.WaitRequest) (*containersv1.WaitResponse, error) {
	exit, err := v.s.Wait(ctx, r.GetRef(), r.GetUntil())
	if err != nil {
		return nil, err
	}
	return &containersv1.WaitResponse{Exit: exit}, nil
}

func (v *server) Attach(stream grpc.BidiStreamingServer[containersv1.AttachRequest, containersv1.AttachResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetStart() == nil {
		return first1("attach")
	}
	return v.s.Attach(stream.Context(), first.GetStart(), &attachClient{stream: stream})
}

func (v *server) Exec(stream grpc.BidiStreamingServer[containersv1.ExecRequest, containersv1.ExecResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetStart() == nil {
		return first1("exec")
	}
	return v.s.Exec(stream.Context(), first.GetStart(), &execClient{stream: stream})
}

func (v *server) Logs(r *containersv1.LogsRequest, out grpc.ServerStreamingServer[containersv1.LogsResponse]) error {
	return v.s.Logs(out.Context(), r, func(batch []*containersv1.LogRecord) error {
		return out.Send(&containersv1.LogsResponse{Records: batch})
	})
}

func first1(verb string) error {
	return fmt.Errorf("%s: the first message must say what to start: %w", verb, errdefs.ErrInvalidArgument)
}

// headers sends them once: that is how a client knows that it is joined.
type headers struct{ once sync.Once }

func (h *headers) send(s grpc.ServerStream) (err error) {
	h.once.Do(func() { err = s.SendHeader(metadata.MD{}) })
	return err
}

type attachClient struct {
	headers
	stream grpc.BidiStreamingServer[containersv1.AttachRequest, containersv1.AttachResponse]
}

func (c *attachClient) Recv() (*typesv1.ProcessInput, error) {
	m, err := c.stream.Recv()
	if err != nil {
		return nil, err
	}
	return m.GetInput(), nil
}

func (c *attachClient) Send(out *typesv1.ProcessOutput) error {
	return c.stream.Send(&containersv1.AttachResponse{Output: out})
}

func (c *attachClient) Ready() error { return c.send(c.stream) }

type execClient struct {
	headers
	stream grpc.BidiStreamingServer[containersv1.ExecRequest, containersv1.ExecResponse]
}

func (c *execClient) Recv() (*typesv1.ProcessInput, error) {
	m, err := c.stream.Recv()
	if err != nil {
		return nil, err
	}
	return m.GetInput(), nil
}

func (c *execClient) Send(out *typesv1.ProcessOutput) error {
	return c.stream.Send(&containersv1.ExecResponse{Output: out})
}

func (c *execClient) Ready() error { return c.send(c.stream) }
