"""Published models at their full widths, with weights like trained ones, beside transformers in float32."""
