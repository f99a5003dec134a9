package rootkey

// BindingOf is bindingOf.
var BindingOf = bindingOf
