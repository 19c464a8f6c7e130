"""What connects a server with software of others. Nothing in hydrogen needs it; each module needs a
package, which an extra names.
"""
