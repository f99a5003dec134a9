package v1alpha1

import "testing"

func TestIsKeyID(t *testing.T) {
	for text, want := range map[string]bool{
		"58c5328e-33de-4093-a011-d7b549401700":   true,
		"58C5328E-33DE-4093-A011-D7B549401700":   false,
		"58c5328e33de4093a011d7b549401700":       false,
		"58c5328e-33de-4093-a011-d7b54940170":    false,
		"58c5328e-33de-4093-a011-d7b549401700\n": false,
		"58c5328-e33de-4093-a011-d7b549401700":   false,
		"":                                       false,
	} {
		if got := IsKeyID(text); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}
