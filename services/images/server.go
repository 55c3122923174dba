package images

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	imagesv1.RegisterImagesServiceServer(r, &server{s: s})
}

type server struct {
	imagesv1.UnimplementedImagesServiceServer
	s *Service
}

// Pull implements ImagesService.
func (v *server) Pull(req *imagesv1.PullRequest, stream grpc.ServerStreamingServer[imagesv1.PullResponse]) error {
	b := newBoard()
	var wg sync.WaitGroup
	wg.Go(func() {
		b.show(func(p *typesv1.Progress) error {
			return stream.Send(&imagesv1.PullResponse{Message: &imagesv1.PullResponse_Progress{Progress: p}})
		})
	})
	img, err := v.s.Pull(stream.Context(), req, b.set)
	b.close()
	wg.Wait()
	if err != nil {
		return err
	}
	return stream.Send(&imagesv1.PullResponse{Message: &imagesv1.PullResponse_Image{Image: img}})
}

// Get implements ImagesService.
func (v *server) Get(ctx context.Context, req *imagesv1.GetRequest) (*imagesv1.GetResponse, error) {
	img, err := v.s.Get(ctx, req.GetRef())
	if err != nil {
		return nil, err
	}
	if err := v.s.For(img, req.GetPlatform()); err != nil {
		return nil, err
	}
	tags, digests, err := v.s.References(img.GetMeta().GetId())
	if err != nil {
		return nil, err
	}
	return &imagesv1.GetResponse{Image: img, Tags: tags, Digests: digests}, nil
}

// List implements ImagesService.
func (v *server) List(req *imagesv1.ListRequest, stream grpc.ServerStreamingServer[imagesv1.ListResponse]) error {
	found, err := v.s.List(stream.Context(), req.GetFilters())
	for _, i := range found {
		if err := stream.Send(&imagesv1.ListResponse{Image: i}); err != nil {
			return err
		}
	}
	return err
}

// Tag implements ImagesService.
func (v *server) Tag(ctx context.Context, req *imagesv1.TagRequest) (*imagesv1.TagResponse, error) {
	img, err := v.s.Tag(ctx, req.GetRef(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &imagesv1.TagResponse{Image: img}, nil
}

// Remove implements ImagesService.
func (v *server) Remove(ctx context.Context, req *imagesv1.RemoveRequest) (*imagesv1.RemoveResponse, error) {
	return v.s.Remove(ctx, req.GetRef(), req.GetForce())
}

// refresh is how often progress is shown.
const refresh = 100 * time.Millisecond

// board is where those who work write how far they are, and from where a client is told. It holds the last word on each
// thing: a slow client misses some in between, and nobody waits for it.
type board struct {
	mu     sync.Mutex
	order  []string // ids with news
	news   map[string]*typesv1.Progress
	verbs  map[string]string
	closed bool
	wake   chan struct{}
	ending chan struct{}
}

func newBoard() *board {
	return &board{news: map[string]*typesv1.Progress{}, verbs: map[string]string{}, wake: make(chan struct{}, 1), ending: make(chan struct{})}
}

// set writes something on the board. It does not wait.
func (b *board) set(p *typesv1.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.GetVerb() == "wait" && b.verbs[p.GetId()] != "" {
		return // a layer that is in the image twice
	}
	if b.news[p.GetId()] == nil {
		b.order = append(b.order, p.GetId())
	}
	b.news[p.GetId()] = p
	b.verbs[p.GetId()] = p.GetVerb()
	b.ring()
}

func (b *board) ring() {
	select {
	case b.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (b *board) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	close(b.ending)
	b.ring()
}

// take takes the news off the board.
func (b *board) take() (out []*typesv1.Progress, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range b.order {
		out = append(out, b.news[id])
	}
	b.order = nil
	clear(b.news)
	return out, b.closed
}

// show sends what is on the board until it is closed. When sending fails it goes on reading: the call ends by its context.
func (b *board) show(send func(*typesv1.Progress) error) {
	var failed bool
	for {
		<-b.wake
		news, closed := b.take()
		for _, p := range news {
			failed = failed || send(p) != nil
		}
		if closed {
			return
		}
		select {
		case <-time.After(refresh):
		case <-b.ending:
		}
	}
}
