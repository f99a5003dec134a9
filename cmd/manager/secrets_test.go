package main

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/datakeys/datakeys/internal/seal"
)

// Whoever writes or removes a Secret that somebody else has changed since it was read does nothing, however short the time in
// between.
func TestASecretIsWrittenAsItWasRead(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	key := client.ObjectKey{Namespace: p.system, Name: "secret"}
	by := func(who string) map[string][]byte { return map[string][]byte{"by": []byte(who)} }
	edit := func(edit func(*corev1.Secret)) func(*testing.T) {
		return func(t *testing.T) {
			var o corev1.Secret
			if err := p.client.Get(t.Context(), key, &o); err != nil {
				t.Fatal(err)
			}
			edit(&o)
			if err := p.client.Update(t.Context(), &o); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T) {
		if err := p.client.Delete(t.Context(), secretOf(key, nil)); err != nil {
			t.Fatal(err)
		}
	}
	replaced := func(t *testing.T) {
		remove(t)
		p.create(t, secretOf(key, by("another")))
	}
	written := edit(func(o *corev1.Secret) { o.Data = by("somebody else") })
	annotated := edit(func(o *corev1.Secret) { o.Annotations = map[string]string{"a": "b"} })
	for name, c := range map[string]struct {
		before, during func(*testing.T) // what somebody else does after the read, and while it is being written
		forget         bool             // which state was read
		err            error
		data           map[string][]byte
	}{
		"nobody else writes":                           {data: by("us")},
		"somebody wrote it before":                     {before: written, err: seal.ErrSecretChanged, data: by("somebody else")},
		"somebody writes it meanwhile":                 {during: written, err: seal.ErrSecretChanged, data: by("somebody else")},
		"somebody annotated it before":                 {before: annotated, err: seal.ErrSecretChanged, data: by("nobody")},
		"it is not known which state was read":         {forget: true, err: seal.ErrSecretChanged, data: by("nobody")},
		"somebody removed it before":                   {before: remove, err: seal.ErrSecretNotFound},
		"somebody removes it meanwhile":                {during: remove, err: seal.ErrSecretNotFound},
		"somebody replaced it by another of that name": {before: replaced, err: seal.ErrSecretChanged, data: by("another")},
	} {
		t.Run(name, func(t *testing.T) {
			during := func() {
				if c.during != nil {
					c.during(t)
				}
			}
			store := secretStore{reader: p.client, namespace: p.system, writer: interceptor.NewClient(p.client, interceptor.Funcs{
				Update: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.UpdateOption) error {
					during()
					return w.Update(ctx, o, options...)
				},
				Delete: func(ctx context.Context, w client.WithWatch, o client.Object, options ...client.DeleteOption) error {
					during()
					return w.Delete(ctx, o, options...)
				},
			})}
			for verb, do := range map[string]func(context.Context, seal.Secret) error{"update": store.Update, "remove": store.Remove} {
				p.create(t, secretOf(key, by("nobody")))
				secret, err := store.Get(t.Context(), key.Name)
				if err != nil {
					t.Fatal(err)
				}
				if c.before != nil {
					c.before(t)
				}
				if c.forget {
					secret.ResourceVersion = ""
				}
				secret.Data = by("us")
				if err := do(t.Context(), secret); !errors.Is(err, c.err) {
					t.Errorf("%s: got %v, want %v", verb, err, c.err)
				}
				after, err := store.Get(t.Context(), key.Name)
				if err != nil && !errors.Is(err, seal.ErrSecretNotFound) {
					t.Fatal(err)
				}
				want := c.data
				if verb == "remove" && c.err == nil {
					want = nil
				}
				if diff := cmp.Diff(want, after.Data); diff != "" {
					t.Errorf("%s: the Secret holds (-want +got):\n%s", verb, diff)
				}
				if err := p.client.Delete(t.Context(), secretOf(key, nil)); client.IgnoreNotFound(err) != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func secretOf(key client.ObjectKey, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: data}
}
